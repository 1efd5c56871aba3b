//go:build !linux

package kernel

import (
	"context"

	"github.com/axocoatl/isolation"
)

func (s *Store) lock(context.Context) (func(), error) {
	return nil, &isolation.UnsupportedError{Feature: "kernels for virtual machines", Need: "Linux"}
}

func hostRelease() string { return "" }
