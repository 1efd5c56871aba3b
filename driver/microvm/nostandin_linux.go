//go:build !standin

package microvm

// standIn is nil: Firecracker is Firecracker.
var standIn []string
