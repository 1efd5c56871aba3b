//go:build !linux

package testprog

// DiskFile is for Linux.
func DiskFile(string) string { return "" }
