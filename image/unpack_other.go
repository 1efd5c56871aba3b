//go:build !linux

package image

import (
	"io"
	"os"

	"github.com/axocoatl/isolation"
)

// Layers are unpacked for overlayfs, by calls that confine every name, and
// both are Linux's.
func unpack(io.Reader, string, Limits) (layerInfo, error) {
	return layerInfo{}, &isolation.UnsupportedError{Feature: "unpacking image layers", Need: "Linux"}
}

func removeTree(dir string) error { return os.RemoveAll(dir) }

func syncTree(string) error { return nil }
