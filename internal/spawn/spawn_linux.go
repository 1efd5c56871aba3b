// Package spawn starts a program with things settled before its first
// instruction that os/exec cannot settle: resource limits, membership of
// version 1 control groups, and which descriptors there are at all.
//
// The child is made with vfork semantics: the caller's thread is suspended
// until the program runs or could not be started, and no page table is copied
// where the architecture has the entry for it (see rawVM). Between the two
// the child runs Go code on the parent's stack and may do nothing but raw
// system calls.
package spawn

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rlimit is a resource limit (setrlimit(2)), soft and hard.
type Rlimit struct {
	Resource int
	Cur, Max uint64
}

// Credential is whom the program runs as.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
	// KeepGroups leaves the supplementary groups as they are, in a user
	// namespace that may not change them.
	KeepGroups bool
}

// Spec is what to start. The program gets Files as descriptors 0, 1, 2, ...
// and no others, is the leader of a new session, has all signals at their
// default and unblocked, and a file mode mask of 022.
type Spec struct {
	// Path is the program's, or what it is called if Program is set.
	Path string
	// Program is the program's file. It needs no name that leads to it.
	Program *os.File
	Args    []string // argv, with the program's name first
	Env     []string
	Dir     string
	Files   []*os.File
	Rlimits []Rlimit
	// Tasks are files of control groups: the child writes "0", itself, into each.
	Tasks []*os.File
	// Group is the directory of a control group of version 2, which the child is
	// made in (clone(2), CLONE_INTO_CGROUP): to move it there would take a lock
	// that costs milliseconds when it has rested.
	Group *os.File
	// NewGroupNamespace gives the program a cgroup namespace with its groups as
	// the root (cgroup_namespaces(7)). It takes CAP_SYS_ADMIN.
	NewGroupNamespace bool
	Cred              *Credential
	// ParentDeathSignal is sent to the program when the Spawner is closed or
	// the process that has it dies. 0: none.
	ParentDeathSignal syscall.Signal

	// Namespaces are CLONE_NEW flags (clone(2)). With any of them the caller's
	// thread goes on while the child gets ready: somebody has to write its maps.
	Namespaces uintptr
	// Map writes the maps of a new user namespace, whose only process waits
	// for it (user_namespaces(7)).
	Map func(pid int) error
	// DropCapabilities empties all sets but the bounding set, which is the
	// thread's (capabilities(7)); see DropBounding.
	DropCapabilities bool
	// Beside are made, in this order, by a process beside the child, which is the
	// first of one more
	// pid namespace, and which stays there, idle, when it is done. It begins when
	// the maps are there, as Cred, with all capabilities of the user namespace and
	// all descriptors of this process. The program is started meanwhile; it can wait
	// for the end of what is made by reading Files[BesideDone] to its end. A step
	// that fails is the error of Start.
	Beside []*Script
	// Notes, if not nil, gets the errors of the optional parts of Beside.
	Notes *[]Note
	// BesideInit and BesideDone are the numbers of Files, which are nil there, that
	// are a pidfd of that process, and the end of a pipe.
	BesideInit, BesideDone int
	// KeepCapabilities lets the program have all capabilities of its new user
	// namespace also when its user is not root there (capabilities(7),
	// "Ambient capability set").
	KeepCapabilities bool
	NoNewPrivs       bool
	// Filter is a seccomp filter that the child loads before its user changes; it
	// takes CAP_SYS_ADMIN. See also LoadFilter.
	Filter []unix.SockFilter
	// OOMScoreAdj is written to /proc/self/oom_score_adj as it is; "": not.
	OOMScoreAdj string
	// ControllingTerminal makes descriptor 0, a terminal, the session's.
	ControllingTerminal bool
	// CPUs is an affinity mask; nil: the caller's.
	CPUs *unix.CPUSet

	// Mounts are made one after the other in the child's mount namespace, which
	// must be a new one; nothing of it is seen outside.
	Mounts []Mount
	// Root, a mount point, becomes the program's root; what was there before is
	// gone. Path and Dir are below it. "": the root stays.
	Root string
}

// Mount is one mount (mount(2)), with attributes that are set on it afterwards
// (mount_setattr(2)), which leaves those that it has.
type Mount struct {
	Source, Target, Type, Data string
	Flags                      uintptr // MS_BIND, MS_REC; or of a new file system
	Attr                       uint64  // MOUNT_ATTR flags
	// Optional: if it cannot be made, it is left out. Instead: it is made only if
	// the one before it was left out.
	Optional, Instead bool
}

// Error is a start that failed in the child. It names the step.
type Error struct {
	Step string
	Err  syscall.Errno
}

func (e *Error) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// The steps of a child.
const (
	stepNone = iota
	stepSession
	stepCgroup
	stepFiles
	stepDir
	stepUser
	stepParent
	stepLimits
	stepMap
	stepOOM
	stepMount
	stepRoot
	stepCapabilities
	stepPrivileges
	stepNamespace
	stepFilter
	stepBeside
	stepExec
)

var stepNames = [...]string{
	stepSession: "new session", stepCgroup: "join cgroup", stepFiles: "set descriptors", stepDir: "enter directory",
	stepUser: "change user", stepParent: "tie to parent", stepLimits: "set limits", stepMap: "wait for id maps",
	stepOOM: "set oom_score_adj", stepMount: "mount", stepRoot: "change root", stepCapabilities: "drop capabilities", stepPrivileges: "set no_new_privs",
	stepNamespace: "make cgroup namespace", stepFilter: "load seccomp filter", stepBeside: "start the first process of programs", stepExec: "execute",
}

// Spawner starts programs from one thread of its own: the kernel sends a
// parent-death signal when the *thread* ends that made the child, and Go ends
// threads as it likes.
type Spawner struct {
	mu     sync.Mutex
	calls  chan func()
	closed bool
	done   chan struct{}
	idle   *Script // becomes the idle program; nil: not opened yet
	idleFD int
}

// Close ends the thread, and with it what is tied to it.
func (s *Spawner) Close() {
	s.mu.Lock()
	s.closed = true
	calls := s.calls
	s.calls = nil
	if s.idle != nil {
		unix.Close(s.idleFD)
		s.idle = nil
	}
	s.mu.Unlock()
	if calls != nil {
		close(calls)
		<-s.done
	}
}

// Start starts a program and returns its pid and a pidfd for it.
func (s *Spawner) Start(spec Spec) (pid int, pidfd *os.File, err error) {
	c, err := prepare(spec)
	defer func() {
		for _, fd := range c.moved {
			unix.Close(fd)
		}
	}()
	if err == nil && len(spec.Beside) > 0 {
		err = c.prepareBeside(spec, s)
	}
	if err != nil {
		return 0, nil, err
	}
	pid, pidfd, err = c.start(s)
	if spec.Notes != nil {
		*spec.Notes = c.notes
	}
	runtime.KeepAlive(spec)
	return pid, pidfd, err
}

// becomeIdle opens the idle program once, and returns the steps to it.
func (s *Spawner) becomeIdle() (*Script, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	if s.idle == nil {
		fd, err := openIdle()
		if err != nil {
			return nil, err
		}
		s.idle, s.idleFD = new(Script), fd
		s.idle.become(fd)
	}
	return s.idle, nil
}

// onThread runs f on the spawner's thread. The error is os.ErrClosed.
func (s *Spawner) onThread(f func()) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	if s.calls == nil {
		s.calls, s.done = make(chan func()), make(chan struct{})
		go s.serve(s.calls)
	}
	finished := make(chan struct{})
	// Sent under the lock, so that Close never closes a channel in use.
	s.calls <- func() {
		f()
		close(finished)
	}
	s.mu.Unlock()
	<-finished
	return nil
}

func (s *Spawner) serve(calls <-chan func()) {
	defer close(s.done)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	for f := range calls {
		f()
	}
}

// child is a Spec as the kernel wants it. Nothing in it is allocated or grown
// after the clone.
type child struct {
	path, dir      *byte
	argv, envp     []*byte
	files          []int
	moved          []int // of files: made here
	tasks          []int
	rlimits        []rlimit
	groups         []uint32
	uid, gid       uint32
	setUser        bool
	deathSignal    uintptr
	parent         uintptr
	pidfd          int32
	sigDefault     [4]uint64 // a struct sigaction of zeroes, which is SIG_DFL
	sigMask        uint64
	zero           [2]byte  // "0": the writer itself; then the empty string
	result         *outcome // written by the child
	closeRangeFrom uintptr

	flags        uintptr    // of clone
	args         *cloneArgs // of clone3, if that is to be called; else nil
	groupNS      bool
	filter       *unix.SockFprog // nil: none
	waits        bool            // the parent goes on, and waits for the execve
	copied       bool            // the child has a copy of the memory
	stack        uintptr         // its top, if the child has one of its own; else 0
	mapIDs       func(pid int) error
	mapped       [2]int // pipe: the child reads until the maps are there
	started      [2]int // pipe: closed by the execve
	keepGroups   bool
	dropCaps     bool
	keepCaps     bool
	lastCap      uintptr
	noNewPrivs   bool
	oomPath, oom []byte // ending with a zero
	oomBytes     uintptr
	capHeader    [2]uint32
	capData      [6]uint32 // effective, permitted, inheritable; then their upper halves
	cpus         *unix.CPUSet
	terminal     bool
	one          [1]byte
	program      int // descriptor; -1: path says it
	script       *Script
	besideRun    scriptRun
	besideStack  uintptr // like stack
	besideInit   int     // of files
	besideDone   int
	besideFD     int32
	notes        []Note
	mounts       []mount
	root         *byte
	slash, dot   [2]byte // "/", "."
}

type mount struct {
	source, target, kind, data *byte
	flags                      uintptr
	attr                       unix.MountAttr
	optional, instead          bool
}

type rlimit struct {
	resource uintptr
	value    [2]uint64
}

// outcome is how far a child got, and the process beside it. It is in memory that
// parent and child share.
type outcome struct {
	step, errno uintptr
	script      scriptOutcome
}

func prepare(s Spec) (*child, error) {
	c := &child{parent: uintptr(os.Getpid()), deathSignal: uintptr(s.ParentDeathSignal), zero: [2]byte{'0'}}
	var err error
	if c.path, err = syscall.BytePtrFromString(s.Path); err != nil {
		return c, err
	}
	c.program = -1
	if c.dir, err = syscall.BytePtrFromString(s.Dir); err != nil {
		return c, err
	}
	if c.argv, err = syscall.SlicePtrFromStrings(s.Args); err != nil {
		return c, err
	}
	if c.envp, err = syscall.SlicePtrFromStrings(s.Env); err != nil {
		return c, err
	}
	if err = c.prepareMounts(s); err != nil {
		return c, err
	}
	// Fd() would make a pipe's end blocking, which theirs already is.
	if c.files, err = numbers(s.Files); err != nil {
		return c, err
	}
	for i, fd := range c.files {
		if c.files[i], err = c.above(fd); err != nil {
			return c, err
		}
	}
	if s.Program != nil {
		n, err := numbers([]*os.File{s.Program})
		if err != nil {
			return c, err
		}
		if c.program, err = c.above(n[0]); err != nil {
			return c, err
		}
	}
	if c.tasks, err = numbers(s.Tasks); err != nil {
		return c, err
	}
	c.groupNS = s.NewGroupNamespace
	if len(s.Filter) > 0 {
		c.filter = &unix.SockFprog{Len: uint16(len(s.Filter)), Filter: unsafe.SliceData(s.Filter)}
	}
	c.closeRangeFrom = uintptr(len(c.files))
	for _, l := range s.Rlimits {
		c.rlimits = append(c.rlimits, rlimit{uintptr(l.Resource), [2]uint64{l.Cur, l.Max}})
	}
	c.flags = cloneFlags
	c.copied = !sharesMemory
	c.waits = c.copied
	if s.Namespaces != 0 {
		c.flags = s.Namespaces | unix.CLONE_PIDFD | uintptr(unix.SIGCHLD)
		c.waits, c.mapIDs = true, s.Map
		// To change the user marks the memory as not to be dumped, so that
		// nobody but root could go on reading his own /proc/self.
		if c.copied = !canApart || os.Geteuid() != 0; !c.copied {
			c.flags |= unix.CLONE_VM
		}
		if s.Namespaces&unix.CLONE_NEWPID != 0 {
			c.parent = 0 // as the child sees it
		}
	}
	if s.Group != nil {
		group, err := numbers([]*os.File{s.Group})
		if err != nil {
			return c, err
		}
		c.args = &cloneArgs{
			flags: uint64(c.flags&^csignal) | unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(group[0]),
		}
	}
	c.dropCaps, c.noNewPrivs, c.cpus, c.terminal = s.DropCapabilities, s.NoNewPrivs, s.CPUs, s.ControllingTerminal
	c.capHeader[0] = unix.LINUX_CAPABILITY_VERSION_3
	if s.KeepCapabilities {
		c.keepCaps = true
		if c.lastCap, err = lastCapability(); err != nil {
			return c, err
		}
		all := uint64(1)<<(c.lastCap+1) - 1
		for i := range 3 {
			c.capData[i], c.capData[3+i] = uint32(all), uint32(all>>32)
		}
	}
	if s.OOMScoreAdj != "" {
		c.oomPath, c.oom = []byte("/proc/self/oom_score_adj\x00"), []byte(s.OOMScoreAdj)
		c.oomBytes = uintptr(len(c.oom))
	}
	if s.Cred != nil {
		c.keepGroups = s.Cred.KeepGroups
		c.setUser, c.uid, c.gid = true, s.Cred.UID, s.Cred.GID
		c.groups = append(make([]uint32, 0, len(s.Cred.Groups)+1), s.Cred.Groups...)
	}
	return c, nil
}

func (c *child) prepareMounts(s Spec) error {
	if (len(s.Mounts) > 0 || s.Root != "") && s.Namespaces&unix.CLONE_NEWNS == 0 {
		return syscall.EINVAL
	}
	c.slash, c.dot = [2]byte{'/'}, [2]byte{'.'}
	text := func(v string) (*byte, error) {
		if v == "" {
			return nil, nil
		}
		return syscall.BytePtrFromString(v)
	}
	var err error
	for _, m := range s.Mounts {
		out := mount{flags: m.Flags, attr: unix.MountAttr{Attr_set: m.Attr}, optional: m.Optional, instead: m.Instead}
		for _, f := range []struct {
			to   **byte
			from string
		}{{&out.source, m.Source}, {&out.target, m.Target}, {&out.kind, m.Type}, {&out.data, m.Data}} {
			if *f.to, err = text(f.from); err != nil {
				return err
			}
		}
		c.mounts = append(c.mounts, out)
	}
	c.root, err = text(s.Root)
	return err
}

// above is a descriptor, or a copy of one that would be overwritten by the program's
// before its turn came. -1 has its turn.
func (c *child) above(fd int) (int, error) {
	if fd < 0 || fd >= len(c.files) {
		return fd, nil
	}
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, len(c.files))
	if err != nil {
		return fd, os.NewSyscallError("fcntl", err)
	}
	c.moved = append(c.moved, fd)
	return fd, nil
}

// beside prepares the process that makes the root.
func (c *child) prepareBeside(s Spec, sp *Spawner) error {
	if s.Namespaces&unix.CLONE_NEWPID == 0 || s.Cred == nil {
		return errors.New("spawn: a root without namespaces and a user in them")
	}
	c.besideInit, c.besideDone = s.BesideInit, s.BesideDone
	idle, err := sp.becomeIdle()
	if err != nil {
		return err
	}
	user := new(Script)
	user.changeUser(s.Cred)
	script := join(slices.Concat([]*Script{user}, s.Beside, []*Script{idle}))
	if err := script.check(); err != nil {
		return err
	}
	c.script, c.besideRun.steps = script, script.steps
	return nil
}

func numbers(files []*os.File) ([]int, error) {
	var out []int
	for _, f := range files {
		if f == nil {
			out = append(out, -1)
			continue
		}
		rc, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := rc.Control(func(fd uintptr) { out = append(out, int(fd)) }); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lastCapability is the largest one that the kernel knows.
var lastCapability = sync.OnceValues(func() (uintptr, error) {
	// An unknown one is EINVAL (prctl(2)).
	for n := uintptr(0); n < 64; n++ {
		if _, _, e := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, n, 0, 0, 0, 0); e != 0 {
			if n == 0 {
				return 0, os.NewSyscallError("prctl", e)
			}
			return n - 1, nil
		}
	}
	return 63, nil
})

// start makes the child, on the spawner's thread, and sees it to its program.
func (c *child) start(s *Spawner) (int, *os.File, error) {
	free, err := c.share()
	if err != nil {
		return 0, nil, err
	}
	defer free()
	if err := c.pipes(); err != nil {
		return 0, nil, err
	}
	defer c.closePipes()
	var pid uintptr
	var errno syscall.Errno
	if err := s.onThread(func() {
		syscall.ForkLock.Lock()
		pid, errno = c.clone()
		syscall.ForkLock.Unlock()
	}); err != nil {
		return 0, nil, err
	}
	if errno != 0 {
		return 0, nil, os.NewSyscallError("clone", errno)
	}
	if c.mapIDs != nil {
		if err := c.mapIDs(int(pid)); err != nil {
			c.end(int(pid))
			return 0, nil, err
		}
		_, _ = unix.Write(c.mapped[1], c.one[:]) // a child that is gone is seen below
	}
	if c.waits {
		unix.Close(c.started[1])
		c.started[1] = -1
		for {
			if _, err := unix.Read(c.started[0], c.one[:]); err != unix.EINTR {
				break
			}
		}
	}
	if step := c.result.step; step != stepNone {
		reap(int(pid))
		unix.Close(int(c.pidfd))
		return 0, nil, &Error{Step: stepNames[step], Err: syscall.Errno(c.result.errno)}
	}
	if c.script != nil {
		if err := c.script.error(&c.result.script); err != nil {
			c.end(int(pid))
			return 0, nil, err
		}
		c.notes = c.script.noted(&c.result.script)
	}
	// Non-blocking, so that the runtime parks who waits for it.
	if err := unix.SetNonblock(int(c.pidfd), true); err != nil {
		c.end(int(pid))
		return 0, nil, err
	}
	return int(pid), os.NewFile(uintptr(c.pidfd), "pidfd"), nil
}

// Wait parks until a program of [Spawner.Start] has ended, and reaps it. The pidfd
// stays open.
func Wait(pid int, pidfd *os.File) (ws unix.WaitStatus, ru unix.Rusage, err error) {
	try := func(flags int) bool {
		var ended int
		ended, err = unix.Wait4(pid, &ws, flags, &ru)
		return ended != 0 && err != unix.EINTR
	}
	rc, rerr := pidfd.SyscallConn()
	if rerr == nil {
		rerr = rc.Read(func(uintptr) bool { return try(unix.WNOHANG) })
	}
	for rerr != nil && !try(0) { // a kernel whose pidfds cannot be polled
	}
	return ws, ru, err
}

// end ends a child that is of no use.
func (c *child) end(pid int) {
	_ = unix.PidfdSendSignal(int(c.pidfd), unix.SIGKILL, nil, 0)
	reap(pid)
	unix.Close(int(c.pidfd))
}

// pipes makes the pipes between parent and child.
func (c *child) pipes() (err error) {
	c.mapped, c.started = [2]int{-1, -1}, [2]int{-1, -1}
	defer func() {
		if err != nil {
			c.closePipes()
		}
	}()
	if c.waits {
		if err := unix.Pipe2(c.started[:], unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("pipe2", err)
		}
		// Where a descriptor of the program goes it would be closed too early.
		for i, old := range c.started {
			if old < len(c.files) {
				if c.started[i], err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, len(c.files)); err != nil {
					c.started[i] = old
					return os.NewSyscallError("fcntl", err)
				}
				unix.Close(old)
			}
		}
		if c.script != nil {
			c.files[c.besideDone] = c.started[0]
		}
	}
	if c.mapIDs != nil {
		if err := unix.Pipe2(c.mapped[:], unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("pipe2", err)
		}
	}
	return nil
}

func (c *child) closePipes() {
	for _, fd := range []int{c.mapped[0], c.mapped[1], c.started[0], c.started[1]} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func reap(pid int) {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// apartStack is far more than a child of raw system calls needs.
const apartStack = 64 << 10

// share finds the memory for the outcome, and for stacks: of the child, and of the
// process beside it.
func (c *child) share() (free func(), err error) {
	c.result, free = new(outcome), func() {}
	if c.copied {
		if c.result, free, err = share(); err != nil {
			return nil, err
		}
	}
	c.besideRun.out = &c.result.script
	if !canApart || !c.waits || c.copied && c.script == nil {
		return free, nil
	}
	b, err := unix.Mmap(-1, 0, 2*apartStack, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_STACK)
	if err != nil {
		free()
		return nil, os.NewSyscallError("mmap", err)
	}
	top := func(n int) uintptr { return uintptr(unsafe.Pointer(&b[n*apartStack-64])) } // aligned, with room for arguments
	if !c.copied {
		c.stack = top(1)
	}
	c.besideStack = top(2)
	unshare := free
	return func() {
		unshare()
		_ = unix.Munmap(b)
	}, nil
}

// share makes an outcome that a child with a copy of the memory shares.
func share() (*outcome, func(), error) {
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	return (*outcome)(unsafe.Pointer(&b[0])), func() { _ = unix.Munmap(b) }, nil
}

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// cloneArgs is struct clone_args of clone3 (clone(2)).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// csignal is the part of clone's flags that is a signal.
const csignal = 0xff

// stackUnit is some size of a stack: the kernel adds it to where it begins.
const stackUnit = 4096

const (
	cloneFlags = unix.CLONE_VFORK | unix.CLONE_PIDFD | memoryFlag | uintptr(unix.SIGCHLD)
	maxSignal  = 64
	// fallbackFiles bounds the closing one by one on kernels before 5.11.
	fallbackFiles = 65536
)

// clone makes the child. The child never returns from here: it executes the
// program or exits. It must not grow the stack, allocate, or call anything but
// raw system calls: other threads of the parent run, and hold what locks they
// do.
//
//go:noinline
//go:norace
//go:nocheckptr
func (c *child) clone() (pid uintptr, errno syscall.Errno) {
	beforeFork() // blocks signals on this thread
	if c.args != nil {
		c.args.pidfd = uint64(uintptr(unsafe.Pointer(&c.pidfd)))
		if c.stack != 0 {
			c.args.stack, c.args.stackSize = uint64(c.stack)-stackUnit, stackUnit
			pid = rawApart3(uintptr(unsafe.Pointer(c.args)), unsafe.Sizeof(*c.args), uintptr(unsafe.Pointer(c)))
		} else {
			pid = rawVM3(uintptr(unsafe.Pointer(c.args)), unsafe.Sizeof(*c.args))
		}
	} else if c.stack != 0 {
		pid = rawApart(c.flags, uintptr(unsafe.Pointer(&c.pidfd)), c.stack, uintptr(unsafe.Pointer(c)))
	} else {
		// Directly: a return address on the stack would be overwritten by what
		// the child calls.
		pid = rawVM(c.flags, uintptr(unsafe.Pointer(&c.pidfd)))
	}
	if pid != 0 {
		afterFork()
		if pid > ^uintptr(4095) {
			return 0, syscall.Errno(-pid)
		}
		return pid, 0
	}
	afterForkInChild() // signal handlers of the runtime to their default
	c.run()
	return 0, 0
}

// run is all that a child does. It does not return.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *child) run() {
	var (
		e    syscall.Errno
		i    int
		step uintptr
		m    *mount
		out  bool // the last mount was left out
	)
	defaultSignals(&c.sigDefault, &c.sigMask)
	syscall.RawSyscall(unix.SYS_UMASK, 0o022, 0, 0)

	if c.mapped[0] >= 0 {
		step = stepMap
		if _, _, e = syscall.RawSyscall(unix.SYS_READ, uintptr(c.mapped[0]), uintptr(unsafe.Pointer(&c.one[0])), 1); e != 0 {
			goto fail
		}
	}
	step = stepSession
	if _, _, e = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		goto fail
	}
	step = stepOOM
	if c.oomBytes > 0 {
		fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(unsafe.SliceData(c.oomPath))), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
		if e = errno; e != 0 {
			goto fail
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.oom))), c.oomBytes); e != 0 {
			goto fail
		}
	}
	// Names lead elsewhere when the root has been made.
	step = stepBeside
	if c.script != nil {
		if e = c.cloneBeside(); e != 0 {
			goto fail
		}
	}
	step = stepCgroup
	for i = range c.tasks {
		if _, _, e = syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.tasks[i]), uintptr(unsafe.Pointer(&c.zero[0])), 1); e != 0 {
			goto fail
		}
	}
	step = stepNamespace
	if c.groupNS {
		if _, _, e = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0); e != 0 {
			goto fail
		}
	}
	step = stepFilter
	if c.filter != nil {
		if _, _, e = syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(c.filter))); e != 0 {
			goto fail
		}
	}
	step = stepFiles
	for i = range c.files {
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, uintptr(c.files[i]), uintptr(i), 0); e != 0 {
			goto fail
		}
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, c.closeRangeFrom, ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC); e != 0 {
		for i = int(c.closeRangeFrom); i < fallbackFiles; i++ {
			syscall.RawSyscall(unix.SYS_FCNTL, uintptr(i), unix.F_SETFD, unix.FD_CLOEXEC)
		}
	}
	if c.terminal {
		if _, _, e = syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0); e != 0 {
			goto fail
		}
	}
	// Limits before the user changes: to raise one takes a privilege.
	step = stepLimits
	for i = range c.rlimits {
		if _, _, e = syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, c.rlimits[i].resource, uintptr(unsafe.Pointer(&c.rlimits[i].value[0])), 0, 0, 0); e != 0 {
			goto fail
		}
	}
	if c.cpus != nil { // as far as the host has them
		syscall.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*c.cpus), uintptr(unsafe.Pointer(c.cpus)))
	}
	// While the user is still who may.
	step = stepMount
	if len(c.mounts) > 0 || c.root != nil {
		if _, _, e = syscall.RawSyscall6(unix.SYS_MOUNT, 0, uintptr(unsafe.Pointer(&c.slash[0])), 0, unix.MS_REC|unix.MS_PRIVATE, 0, 0); e != 0 {
			goto fail
		}
	}
	for i = range c.mounts {
		m = &c.mounts[i]
		if m.instead && !out {
			continue
		}
		out = false
		_, _, e = syscall.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(m.source)), uintptr(unsafe.Pointer(m.target)),
			uintptr(unsafe.Pointer(m.kind)), m.flags, uintptr(unsafe.Pointer(m.data)), 0)
		if e != 0 && m.optional {
			out = true
			continue
		}
		if e == 0 && m.attr.Attr_set != 0 {
			_, _, e = syscall.RawSyscall6(unix.SYS_MOUNT_SETATTR, ^uintptr(99), uintptr(unsafe.Pointer(m.target)), unix.AT_RECURSIVE,
				uintptr(unsafe.Pointer(&m.attr)), unsafe.Sizeof(m.attr), 0)
		}
		if e != 0 {
			goto fail
		}
	}
	// pivot_root(2), "pivot_root(".", ".")".
	step = stepRoot
	if c.root != nil {
		if _, _, e = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(c.root)), 0, 0); e != 0 {
			goto fail
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_PIVOT_ROOT, uintptr(unsafe.Pointer(&c.dot[0])), uintptr(unsafe.Pointer(&c.dot[0])), 0); e != 0 {
			goto fail
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_UMOUNT2, uintptr(unsafe.Pointer(&c.dot[0])), unix.MNT_DETACH, 0); e != 0 {
			goto fail
		}
	}
	step = stepCapabilities
	if c.dropCaps {
		if _, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0); e != 0 {
			goto fail
		}
	}
	step = stepUser
	if c.setUser {
		if !c.keepGroups {
			if _, _, e = syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(unsafe.Pointer(unsafe.SliceData(c.groups))), 0); e != 0 {
				goto fail
			}
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(c.gid), uintptr(c.gid), uintptr(c.gid)); e != 0 {
			goto fail
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(c.uid), uintptr(c.uid), uintptr(c.uid)); e != 0 {
			goto fail
		}
	}
	// As the user: who may not enter the directory does not start in it.
	step = stepDir
	if _, _, e = syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(c.dir)), 0, 0); e != 0 {
		goto fail
	}
	// After the user: to change that clears the signal.
	step = stepParent
	if c.deathSignal != 0 {
		if _, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, c.deathSignal, 0, 0, 0, 0); e != 0 {
			goto fail
		}
		// The parent may have died before the signal was set.
		if ppid, _, _ := syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); ppid != c.parent {
			e = syscall.ESRCH
			goto fail
		}
	}
	step = stepCapabilities
	if c.dropCaps || c.keepCaps {
		if _, _, e = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.capHeader[0])), uintptr(unsafe.Pointer(&c.capData[0])), 0); e != 0 {
			goto fail
		}
	}
	if c.keepCaps {
		for i = 0; i <= int(c.lastCap); i++ {
			if _, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i), 0, 0, 0); e != 0 {
				goto fail
			}
		}
	}
	step = stepPrivileges
	if c.noNewPrivs {
		if _, _, e = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
			goto fail
		}
	}
	step = stepExec
	if c.program >= 0 {
		_, _, e = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(c.program), uintptr(unsafe.Pointer(&c.zero[1])),
			uintptr(unsafe.Pointer(&c.argv[0])), uintptr(unsafe.Pointer(&c.envp[0])), unix.AT_EMPTY_PATH, 0)
	} else {
		_, _, e = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(c.path)),
			uintptr(unsafe.Pointer(&c.argv[0])), uintptr(unsafe.Pointer(&c.envp[0])))
	}
fail:
	c.result.step, c.result.errno = step, uintptr(e)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 253, 0, 0)
	}
}

// cloneBeside makes the process that makes the root, and puts a pidfd of it where the
// program's descriptors do not go. If it cannot run beside this one it goes first.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (c *child) cloneBeside() (e syscall.Errno) {
	var pid, fd uintptr
	if c.besideStack != 0 {
		pid = rawBeside(besideFlags, uintptr(unsafe.Pointer(&c.besideFD)), c.besideStack, uintptr(unsafe.Pointer(c)))
	} else if pid = rawVM(besideFlags|unix.CLONE_VFORK, uintptr(unsafe.Pointer(&c.besideFD))); pid == 0 {
		c.besideRun.run()
	}
	if pid > ^uintptr(4095) {
		return syscall.Errno(-pid)
	}
	fd, _, e = syscall.RawSyscall(unix.SYS_FCNTL, uintptr(c.besideFD), unix.F_DUPFD_CLOEXEC, uintptr(len(c.files)))
	c.files[c.besideInit] = int(fd)
	return e
}

const besideFlags = unix.CLONE_NEWPID | unix.CLONE_PIDFD | memoryFlag | uintptr(unix.SIGCHLD)
