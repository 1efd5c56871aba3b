package landlock

import (
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights on files and directories (Documentation/userspace-api/landlock.rst).
// What the kernel's version does not know is left out by New.
const (
	Read    uint64 = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	Execute uint64 = unix.LANDLOCK_ACCESS_FS_EXECUTE
	// Change is to make, rename, remove and write what is no device, socket or
	// FIFO.
	Change uint64 = WriteFile | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM |
		unix.LANDLOCK_ACCESS_FS_REFER
	WriteFile uint64 = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	Devices   uint64 = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	All       uint64 = 1<<16 - 1
)

// ErrMissing says that the kernel has no Landlock.
var ErrMissing = errors.New("the kernel has no Landlock, or it is not enabled (boot parameter lsm=landlock,...)")

// Rule allows access below a directory, or to a file.
type Rule struct {
	FD     int
	Access uint64
}

// Denied is what a set takes away besides files: TCP, and the sockets and
// processes of threads outside it.
type Denied struct {
	TCP    bool
	Others bool // abstract unix sockets, signals
}

// New makes a rule set: no access to files but by the rules. It returns the
// version of the kernel's interface, too.
func New(d Denied, rules []Rule) (set *os.File, abi int, err error) {
	n, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if abi = int(n); e != 0 || abi < 1 {
		return nil, 0, ErrMissing
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: known(abi)}
	// An older kernel knows a shorter struct.
	size := unsafe.Offsetof(attr.Handled_access_net)
	if abi >= 4 {
		size = unsafe.Offsetof(attr.Scoped)
		if d.TCP {
			attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		}
	}
	if abi >= 6 {
		size = unsafe.Offsetof(attr.Quiet_access_fs)
		if d.Others {
			attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		}
	}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return nil, 0, os.NewSyscallError("landlock_create_ruleset", e)
	}
	set = os.NewFile(fd, "landlock")
	for _, r := range rules {
		rule := unix.LandlockPathBeneathAttr{Allowed_access: r.Access & attr.Handled_access_fs, Parent_fd: int32(r.FD)}
		if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
			set.Close()
			return nil, 0, os.NewSyscallError("landlock_add_rule", e)
		}
	}
	runtime.KeepAlive(rules)
	return set, abi, nil
}

// known returns the rights on files that a version knows.
func known(abi int) uint64 {
	fs := uint64(1<<13 - 1)
	if abi >= 2 {
		fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return fs
}

// RestrictThread puts the calling thread, and what it starts from now on,
// under a set. It takes no_new_privs or CAP_SYS_ADMIN.
func RestrictThread(set *os.File) error {
	_, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set.Fd(), 0, 0)
	if e != 0 {
		return os.NewSyscallError("landlock_restrict_self", e)
	}
	return nil
}
