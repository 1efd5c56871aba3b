//go:build !linux

package disk

import "github.com/axocoatl/isolation"

// Layers is of Linux alone, as layers are.
func (w *Writer) Layers([]string, Owner) error {
	return &isolation.UnsupportedError{Feature: "disks of images", Need: "Linux"}
}
