package spawn

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// visitor is a child that joins control groups for a moment. Nothing in it is
// allocated or grown after the clone.
type visitor struct {
	tasks []int
	zero  [1]byte // "0": the writer itself
	name  []byte
	fd    int // where the namespace is to be, in the table that both have
}

// GroupNamespace makes a cgroup namespace (cgroup_namespaces(7)) whose root are the
// control groups of these files of version 1, and for other hierarchies this
// process's own. It takes CAP_SYS_ADMIN, and a /proc that shows the calling
// thread's children. A child that shares the memory makes it: membership is of
// threads, and those of this process are to stay where they are.
func GroupNamespace(tasks []*os.File) (*os.File, error) {
	v := &visitor{zero: [1]byte{'0'}, name: []byte("/proc/self/ns/cgroup\x00")}
	var err error
	if v.tasks, err = numbers(tasks); err != nil {
		return nil, err
	}
	if v.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil { // its place
		return nil, os.NewSyscallError("eventfd", err)
	}
	ns := os.NewFile(uintptr(v.fd), "cgroup namespace")
	syscall.ForkLock.Lock()
	pid, errno := v.clone()
	syscall.ForkLock.Unlock()
	if errno == 0 {
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(int(pid), &ws, 0, nil); err != unix.EINTR {
				break
			}
		}
		errno = syscall.Errno(ws.ExitStatus())
	}
	if errno != 0 {
		ns.Close()
		return nil, os.NewSyscallError("make cgroup namespace", errno)
	}
	return ns, nil
}

// clone makes the child, which never returns from here. See child.clone.
//
//go:noinline
//go:norace
//go:nocheckptr
func (v *visitor) clone() (pid uintptr, errno syscall.Errno) {
	var (
		e  syscall.Errno
		fd uintptr
		i  int
	)
	beforeFork()
	pid = rawVM(unix.CLONE_VFORK|unix.CLONE_FILES|memoryFlag|uintptr(unix.SIGCHLD), 0)
	if pid != 0 {
		afterFork()
		if pid > ^uintptr(4095) {
			return 0, syscall.Errno(-pid)
		}
		return pid, 0
	}
	afterForkInChild()
	for i = range v.tasks {
		if _, _, e = syscall.RawSyscall(unix.SYS_WRITE, uintptr(v.tasks[i]), uintptr(unsafe.Pointer(&v.zero[0])), 1); e != 0 {
			goto end
		}
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0); e != 0 {
		goto end
	}
	if fd, _, e = syscall.RawSyscall6(unix.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(unsafe.SliceData(v.name))), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0); e != 0 {
		goto end
	}
	_, _, e = syscall.RawSyscall(unix.SYS_DUP3, fd, uintptr(v.fd), unix.O_CLOEXEC)
	syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
end:
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	}
}
