//go:build !unix

package base

import "github.com/axocoatl/isolation"

func lock(string) (func(), error) {
	return nil, &isolation.UnsupportedError{Feature: "making a base image", Need: "Linux"}
}
