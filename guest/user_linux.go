package guest

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asUser runs f where names are the programs', with a user's rights to files and
// no capabilities (credentials(7)).
func (g *guest) asUser(u account, f func() error) error {
	return g.filers.do(func() error {
		restore, err := g.masquerade(u)
		if err == nil {
			err = f()
		}
		if rerr := restore(); rerr != nil {
			// Nobody may go on with half of somebody's rights.
			panic("guest: credentials of a thread: " + rerr.Error())
		}
		return err
	})
}

// masquerade makes the calling thread a user, until restore. What the threads have
// of the process's own is in permitted.
func (g *guest) masquerade(u account) (restore func() error, err error) {
	uid, gid := os.Getuid(), os.Getgid()
	var groups []int
	if !g.plan.Process.KeepGroups {
		if groups, err = unix.Getgroups(); err != nil {
			return func() error { return nil }, err
		}
	}
	restore = func() error {
		return errors.Join(effective(true), setFS(uid, gid), g.setGroups(toUint32(groups)))
	}
	if err := g.setGroups(u.groups); err != nil {
		return restore, err
	}
	if err := setFS(int(u.uid), int(u.gid)); err != nil {
		return restore, err
	}
	return restore, effective(false)
}

func toUint32(l []int) []uint32 {
	out := make([]uint32, len(l))
	for i, n := range l {
		out[i] = uint32(n)
	}
	return out
}

func (g *guest) setGroups(l []uint32) error {
	if g.plan.Process.KeepGroups {
		return nil
	}
	_, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(l)), uintptr(unsafe.Pointer(unsafe.SliceData(l))), 0)
	runtime.KeepAlive(l)
	if e != 0 {
		return os.NewSyscallError("setgroups", e)
	}
	return nil
}

// setFS sets by whom files are opened and made. The calls tell what was, and not
// whether they worked (setfsuid(2)).
func setFS(uid, gid int) error {
	none := ^uintptr(0)
	syscall.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	syscall.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	g, _, _ := syscall.RawSyscall(unix.SYS_SETFSGID, none, 0, 0)
	u, _, _ := syscall.RawSyscall(unix.SYS_SETFSUID, none, 0, 0)
	if int(u) != uid || int(g) != gid {
		return &classError{classPermission, os.NewSyscallError("setfsuid", unix.EPERM)}
	}
	return nil
}

// effective gives the thread all of its permitted capabilities, or none.
func effective(on bool) error {
	header := [2]uint32{unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]struct{ effective, permitted, inheritable uint32 }
	if _, _, e := syscall.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0); e != 0 {
		return os.NewSyscallError("capget", e)
	}
	for i := range data {
		data[i].effective = 0
		if on {
			data[i].effective = data[i].permitted
		}
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0); e != 0 {
		return os.NewSyscallError("capset", e)
	}
	return nil
}
