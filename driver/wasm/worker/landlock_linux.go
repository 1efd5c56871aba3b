package worker

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights on files and directories (Documentation/userspace-api/landlock.rst).
const (
	landlockRead = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	// landlockWrite is what a writable mount has above reading. Devices,
	// sockets, FIFOs and executing are in no mount.
	landlockWrite = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM |
		unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// landlockHandled returns all rights that the kernel's ABI knows.
func landlockHandled(abi int) (fs, net, scope uint64) {
	fs = 1<<13 - 1
	if abi >= 2 {
		fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 4 {
		net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= 6 {
		scope = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	return fs, net, scope
}

// landlockDir is a directory that stays reachable.
type landlockDir struct {
	dir      *os.File
	writable bool
}

var errNoLandlock = errors.New("the kernel has no Landlock, or it is not enabled (boot parameter lsm=landlock,...)")

// landlock restricts every thread of the process to dirs. It returns what it
// enforced, for people.
func landlock(dirs []landlockDir) (string, error) {
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 || int(abi) < 1 {
		return "", errNoLandlock
	}
	fs, net, scope := landlockHandled(int(abi))
	attr := unix.LandlockRulesetAttr{Handled_access_fs: fs, Handled_access_net: net, Scoped: scope}
	// An older kernel knows a shorter struct.
	size := unsafe.Offsetof(attr.Quiet_access_fs)
	switch {
	case abi < 4:
		size = unsafe.Offsetof(attr.Handled_access_net)
	case abi < 6:
		size = unsafe.Offsetof(attr.Scoped)
	}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return "", os.NewSyscallError("landlock_create_ruleset", e)
	}
	defer unix.Close(int(fd))
	for _, d := range dirs {
		allowed := uint64(landlockRead)
		if d.writable {
			allowed |= landlockWrite
		}
		rule := unix.LandlockPathBeneathAttr{Allowed_access: allowed & fs, Parent_fd: int32(d.dir.Fd())}
		if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
			return "", os.NewSyscallError("landlock_add_rule", e)
		}
	}
	// Threads that exist already would stay free: the runtime made some before
	// main.
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return "", allThreadsError("landlock_restrict_self", e)
	}
	return fmt.Sprintf("ABI %d, %d directories reachable", abi, len(dirs)), nil
}

func allThreadsError(what string, e syscall.Errno) error {
	if e == syscall.ENOTSUP {
		return fmt.Errorf("%s: this program was built with cgo, which cannot restrict all threads: build it with CGO_ENABLED=0", what)
	}
	return os.NewSyscallError(what, e)
}
