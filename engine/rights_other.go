//go:build !linux

package engine

func rights() string { return "" }
