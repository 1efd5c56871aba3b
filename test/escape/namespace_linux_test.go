package escape

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// enterMountNamespace gives the calling thread a mount namespace of its own, for
// good: it ends with its goroutine.
func enterMountNamespace() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}
