//go:build linux && (amd64 || arm64)

package spawn

import "golang.org/x/sys/unix"

const (
	sharesMemory = true
	memoryFlag   = unix.CLONE_VM
)

// rawVM is clone(2) on the caller's stack; an error is a small negative number.
// Only assembly can come back twice from a child that shares it.
//
//go:noescape
func rawVM(flags, parentTID uintptr) (r uintptr)

// rawVM3 is the same with clone3.
//
//go:noescape
func rawVM3(args, size uintptr) (r uintptr)
