package spawn

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// initProcess is what the idle process of a new namespace needs. Nothing in
// it is allocated or grown after the clone.
type initProcess struct {
	sigIgnore  [4]uint64 // a struct sigaction of SIG_IGN
	sigDefault [4]uint64
	sigMask    uint64
	fstype     *byte
	target     *byte
	ready      [2]int
	report     [1]byte
	pidfd      int32
	flags      uintptr
}

// StartInit starts the first process of a new pid namespace: it mounts a proc
// file system of that namespace on target, closes all descriptors, and from
// then on does nothing, as the parent of orphans, which the kernel reaps for it
// because it ignores SIGCHLD (wait(2)). It is this program's own copy and
// executes nothing: it costs a few pages. It dies with its parent's namespace,
// or by the returned pidfd.
func StartInit(target string) (pidfd *os.File, err error) {
	p := &initProcess{flags: unix.CLONE_NEWPID}
	if p.fstype, err = syscall.BytePtrFromString("proc"); err != nil {
		return nil, err
	}
	if p.target, err = syscall.BytePtrFromString(target); err != nil {
		return nil, err
	}
	_, fd, err := p.start()
	if err != nil {
		return nil, &os.PathError{Op: "mount proc", Path: target, Err: err}
	}
	return fd, nil
}

// UserNamespace makes a user namespace with these maps (user_namespaces(7)),
// without a process in it. It lives as long as the descriptor.
func UserNamespace(uidMap, gidMap string) (*os.File, error) {
	p := &initProcess{flags: unix.CLONE_NEWUSER}
	pid, fd, err := p.start()
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	defer func() {
		_ = unix.PidfdSendSignal(int(p.pidfd), unix.SIGKILL, nil, 0)
		reap(pid)
		fd.Close()
	}()
	dir := fmt.Sprintf("/proc/%d/", pid)
	if err := os.WriteFile(dir+"gid_map", []byte(gidMap), 0); err != nil {
		return nil, err
	}
	if err := os.WriteFile(dir+"uid_map", []byte(uidMap), 0); err != nil {
		return nil, err
	}
	return os.Open(dir + "ns/user")
}

// start starts the process and waits until it is ready.
func (p *initProcess) start() (int, *os.File, error) {
	p.sigIgnore[0] = 1
	if err := unix.Pipe2(p.ready[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, os.NewSyscallError("pipe2", err)
	}
	syscall.ForkLock.Lock()
	pid, errno := p.clone()
	syscall.ForkLock.Unlock()
	unix.Close(p.ready[1])
	defer unix.Close(p.ready[0])
	if errno != 0 {
		return 0, nil, os.NewSyscallError("clone", errno)
	}
	var answer [1]byte
	var n int
	var err error
	for {
		if n, err = unix.Read(p.ready[0], answer[:]); err != unix.EINTR {
			break
		}
	}
	if err == nil && n == 1 && answer[0] == 0 {
		return int(pid), os.NewFile(uintptr(p.pidfd), "init"), nil
	}
	_ = unix.PidfdSendSignal(int(p.pidfd), unix.SIGKILL, nil, 0)
	reap(int(pid))
	unix.Close(int(p.pidfd))
	if err == nil && n == 1 {
		err = syscall.Errno(answer[0])
	} else if err == nil {
		err = errors.New("it died")
	}
	return 0, nil, err
}

// clone makes the process, which never returns from here. See child.clone.
//
//go:noinline
//go:norace
//go:nocheckptr
func (p *initProcess) clone() (pid uintptr, errno syscall.Errno) {
	var (
		e syscall.Errno
		i uintptr
	)
	beforeFork()
	pid = rawVM(p.flags|unix.CLONE_PIDFD|uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&p.pidfd)))
	if pid != 0 {
		afterFork()
		if pid > ^uintptr(4095) {
			return 0, syscall.Errno(-pid)
		}
		return pid, 0
	}
	afterForkInChild()
	for i = 1; i <= maxSignal; i++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, i, uintptr(unsafe.Pointer(&p.sigDefault[0])), 0, 8, 0, 0)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&p.sigIgnore[0])), 0, 8, 0, 0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.sigMask)), 0, 8, 0, 0)
	syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	if p.target != nil {
		_, _, e = syscall.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(p.fstype)), uintptr(unsafe.Pointer(p.target)),
			uintptr(unsafe.Pointer(p.fstype)), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0, 0)
	}
	p.report[0] = byte(e)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(p.ready[1]), uintptr(unsafe.Pointer(&p.report[0])), 1)
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 0, ^uintptr(0)>>32, 0)
	if e != 0 {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
	for {
		syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0) // for ever
	}
}

// EnterPID makes this spawner start its programs in the pid namespace of a
// process, whose orphans then go to that namespace's first process. It must be
// called before the first Start.
func (s *Spawner) EnterPID(pidfd *os.File) error {
	return s.Do(func() error {
		rc, err := pidfd.SyscallConn()
		if err != nil {
			return err
		}
		cerr := rc.Control(func(fd uintptr) { err = os.NewSyscallError("setns", unix.Setns(int(fd), unix.CLONE_NEWPID)) })
		return errors.Join(cerr, err)
	})
}

// Do runs f on the thread that starts the programs. What a thread has, and what
// confines it, they have from their start: bounding set, seccomp filters,
// Landlock domain.
func (s *Spawner) Do(f func() error) error {
	var err error
	if serr := s.onThread(func() { err = f() }); serr != nil {
		return serr
	}
	return err
}

// DropBounding takes all capabilities but these out of the bounding set of the
// calling thread (capabilities(7)).
func DropBounding(keep []int) error {
	last, err := lastCapability()
	if err != nil {
		return err
	}
	for n := 0; n <= int(last); n++ {
		if slices.Contains(keep, n) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
	}
	return nil
}

// LoadFilter puts the calling thread under a seccomp filter (seccomp(2)). It
// takes CAP_SYS_ADMIN in the thread's user namespace.
func LoadFilter(filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
	_, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if e != 0 {
		return os.NewSyscallError("seccomp", e)
	}
	return nil
}
