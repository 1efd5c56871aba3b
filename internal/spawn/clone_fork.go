//go:build linux && !amd64 && !arm64

package spawn

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The child has a copy of the memory, which is slower and needs no assembly.
const (
	sharesMemory = false
	memoryFlag   = 0
)

// rawVM is clone(2); an error is a small negative number.
//
//go:nosplit
func rawVM(flags, parentTID uintptr) uintptr {
	var r uintptr
	var e syscall.Errno
	if runtime.GOARCH == "s390x" { // its first two arguments are the other way round
		r, _, e = syscall.RawSyscall6(unix.SYS_CLONE, 0, flags, parentTID, 0, 0, 0)
	} else {
		r, _, e = syscall.RawSyscall6(unix.SYS_CLONE, flags, 0, parentTID, 0, 0, 0)
	}
	if e != 0 {
		return -uintptr(e)
	}
	return r
}

// rawVM3 is clone3 (clone(2)).
//
//go:nosplit
func rawVM3(args, size uintptr) uintptr {
	r, _, e := syscall.RawSyscall(unix.SYS_CLONE3, args, size, 0)
	if e != 0 {
		return -uintptr(e)
	}
	return r
}
