package spawn

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// StartInit starts the first process of a new pid namespace: it mounts a proc
// file system of that namespace on target, and from then on does nothing, as the
// parent of orphans. It dies with its parent's namespace, or by the returned
// pidfd.
func StartInit(target string) (pidfd *os.File, err error) {
	var s Script
	s.Do("mount proc on "+target, unix.SYS_MOUNT, "proc", target, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
	_, fd, err := s.start(unix.CLONE_NEWPID)
	return fd, err
}

// UserNamespace makes a user namespace with these maps (user_namespaces(7)),
// without a process in it. It lives as long as the descriptor.
func UserNamespace(uidMap, gidMap string) (*os.File, error) {
	pid, fd, err := new(Script).start(unix.CLONE_NEWUSER)
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	defer func() {
		_ = unix.PidfdSendSignal(int(fd.Fd()), unix.SIGKILL, nil, 0)
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

// start starts the idle process of new namespaces, which makes the steps first.
func (s *Script) start(namespaces uintptr) (int, *os.File, error) {
	idle, err := openIdle()
	if err != nil {
		return 0, nil, err
	}
	defer unix.Close(idle)
	s.become(idle)
	if err := s.check(); err != nil {
		return 0, nil, err
	}
	shared, free, err := share()
	if err != nil {
		return 0, nil, err
	}
	defer free()
	p := &idleChild{flags: namespaces | cloneFlags, run: scriptRun{steps: s.steps, out: &shared.script}}
	syscall.ForkLock.Lock()
	pid, errno := p.clone()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(s)
	if errno != 0 {
		return 0, nil, os.NewSyscallError("clone", errno)
	}
	if err := s.error(&shared.script); err != nil {
		reap(int(pid))
		unix.Close(int(p.pidfd))
		return 0, nil, err
	}
	return int(pid), os.NewFile(uintptr(p.pidfd), "init"), nil
}

// idleChild is what clone needs. Nothing in it is allocated or grown then.
type idleChild struct {
	flags      uintptr
	pidfd      int32
	run        scriptRun
	sigDefault [4]uint64
	sigMask    uint64
}

// clone makes the process, which never returns from here. See child.clone.
//
//go:noinline
//go:norace
//go:nocheckptr
func (p *idleChild) clone() (pid uintptr, errno syscall.Errno) {
	beforeFork()
	pid = rawVM(p.flags, uintptr(unsafe.Pointer(&p.pidfd)))
	if pid != 0 {
		afterFork()
		if pid > ^uintptr(4095) {
			return 0, syscall.Errno(-pid)
		}
		return pid, 0
	}
	afterForkInChild()
	defaultSignals(&p.sigDefault, &p.sigMask)
	p.run.run()
	return 0, 0
}

// defaultSignals gives all signals their default, also those that the host program
// ignores, and unblocks them: what is ignored or blocked is inherited.
//
//go:nosplit
//go:norace
//go:nocheckptr
func defaultSignals(action *[4]uint64, mask *uint64) {
	for i := uintptr(1); i <= maxSignal; i++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, i, uintptr(unsafe.Pointer(action)), 0, 8, 0, 0)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(mask)), 0, 8, 0, 0)
}

// Enter makes this spawner start its programs in namespaces of a process, CLONE_NEW
// flags (setns(2)). Orphans in a pid namespace go to its first process. It must be
// called before the first Start.
func (s *Spawner) Enter(pidfd *os.File, namespaces int) error {
	fd, err := numbers([]*os.File{pidfd})
	if err != nil {
		return err
	}
	return s.Do(func() error { return os.NewSyscallError("setns", unix.Setns(fd[0], namespaces)) })
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
	for n := 0; ; n++ {
		if slices.Contains(keep, n) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0)
		if err == unix.EINVAL && n > unix.CAP_AUDIT_READ { // past the last that the kernel knows
			return nil
		}
		if err != nil {
			return os.NewSyscallError("prctl", err)
		}
	}
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
