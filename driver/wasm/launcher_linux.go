package wasm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm/worker"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/spawn"
)

// launcher starts worker processes. All are started by one thread, which lives
// until close: the kernel ties a parent-death signal to the thread.
type launcher struct {
	config  *Config
	engine  *description
	prog    program
	progErr error
	jail    bool
	groups  *cgroup.Tree
	spawner spawn.Spawner

	mu    sync.Mutex
	memfd *os.File // guarded by mu; the embedded program, once it was wanted
}

func newLauncher(c *Config, e *description) (*launcher, error) {
	l := &launcher{config: c, engine: e, jail: true}
	l.prog, l.progErr = findProgram(c, e)
	if c.NoCgroup {
		l.groups = cgroup.None("turned off by configuration")
	} else {
		l.groups = cgroup.Find(cgroup.Memory)
	}
	return l, nil
}

// executable is the path by which a child finds the program.
func (l *launcher) executable() (string, error) {
	if l.progErr != nil || l.prog.content == nil {
		return l.prog.path, l.progErr
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.memfd == nil {
		f, err := seal(l.prog.content)
		if err != nil {
			return "", fmt.Errorf("embedded worker: %w", err)
		}
		l.memfd = f
	}
	return fmt.Sprintf("/proc/self/fd/%d", l.memfd.Fd()), nil
}

// aboveWorkers is a descriptor number that no worker is given: the path of the
// program is looked up when the worker's descriptors are in their places.
const aboveWorkers = 16

// seal puts the embedded program into a memory file that nobody can change. That
// takes milliseconds, so it is done for the first worker, not before.
func seal(content []byte) (*os.File, error) {
	low, err := unix.MemfdCreate("axo-wasm", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	fd, err := unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, aboveWorkers)
	unix.Close(low)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "axo-wasm")
	if _, err = f.Write(content); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// child is a worker process and the connection to it.
type child struct {
	*os.File
	pid    int
	busy   atomic.Bool // reads look for a while before they sleep
	pidfd  *os.File
	stderr *os.File
	role   string
	group  *cgroup.Group
	entry  Entry
	limits *Config

	killed atomic.Bool
	once   sync.Once
	end    childEnd
}

func (l *launcher) start(role string) (_ *child, err error) {
	path, err := l.executable()
	if err != nil {
		return nil, err
	}
	var undo undo
	defer func() { undo.unless(err == nil) }()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "worker")
	undo.add(func() { ours.Close() })
	defer theirs.Close()
	// Nobody reads the pipe while the worker lives: what does not fit is lost
	// to the worker, and the host keeps no goroutine for it.
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	errRead, errWrite := os.NewFile(uintptr(fds[0]), "stderr"), os.NewFile(uintptr(fds[1]), "stderr")
	undo.add(func() { errRead.Close() })
	defer errWrite.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	c := &child{File: ours, stderr: errRead, role: role, limits: l.config}
	if err := l.account(c, role); err != nil {
		return nil, err
	}
	undo.add(c.unaccount)
	c.pid, c.pidfd, err = l.spawner.Start(spawn.Spec{
		Path: path, Args: []string{l.engine.program, role},
		// A fixed environment: nothing of the caller's reaches a worker.
		Env: append([]string{"GODEBUG=madvdontneed=1"}, l.prog.env...), Dir: "/",
		Files: []*os.File{null, null, errWrite, theirs},
		// It joins by itself, before its first instruction: to move it costs
		// milliseconds.
		Tasks: c.group.Joins(), Group: c.group.Into(), Rlimits: c.rlimits(), ParentDeathSignal: syscall.SIGKILL,
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", l.prog.how, err)
	}
	failpoint.Hit(failpoint.Started)
	undo.add(func() { c.kill(); c.reap() })
	if c.entry != nil {
		if err := c.entry.AddProcess(c.pid); err != nil {
			return nil, err
		}
	}
	failpoint.Hit(failpoint.Attached)
	return c, nil
}

// account makes the journal entry and the control group of a worker, before it
// exists.
func (l *launcher) account(c *child, role string) (err error) {
	name := fmt.Sprintf("axo-wasm-%d-%d", os.Getpid(), launches.Add(1))
	if r := l.config.Recorder; r != nil {
		if c.entry, err = r.Record(name); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		failpoint.Hit(failpoint.Recorded)
	}
	if !l.groups.Has(cgroup.Memory) {
		return nil
	}
	limit := l.config.MaxMemory + headroom
	if role == worker.RoleCompile {
		limit = l.config.CompileMemory
	}
	limits := cgroup.Limits{MemoryBytes: limit}
	if c.entry != nil {
		for _, dir := range l.groups.Paths(name, limits) {
			if err := c.entry.AddPath("cgroup", dir); err != nil {
				return err
			}
		}
	}
	if c.group, err = l.groups.Create(name, limits); err != nil {
		c.unaccount()
		return fmt.Errorf("worker's control group: %w", err)
	}
	failpoint.Hit(failpoint.GroupMade)
	return nil
}

var launches atomic.Int64

// unaccount removes the control group and the journal entry.
func (c *child) unaccount() {
	if c.group != nil {
		ctx, cancel := context.WithTimeout(context.Background(), groupGrace)
		defer cancel()
		if err := c.group.Delete(ctx); err != nil {
			c.limits.Logger.Warn("remove control group", "error", err)
			return // the journal keeps it for the sweeper
		}
	}
	failpoint.Hit(failpoint.GroupRemoved)
	if c.entry != nil {
		if err := c.entry.Done(); err != nil {
			c.limits.Logger.Warn("close journal entry", "error", err)
		}
	}
}

// groupGrace is how long the kernel may take to be done with a dead process.
const groupGrace = 2 * time.Second

// openFiles is what a worker may have open: its own few, and a module's.
const openFiles = 4096

func (c *child) rlimits() []spawn.Rlimit {
	same := func(what int, v uint64) spawn.Rlimit { return spawn.Rlimit{Resource: what, Cur: v, Max: v} }
	list := []spawn.Rlimit{same(unix.RLIMIT_CORE, 0), same(unix.RLIMIT_NOFILE, openFiles)}
	if c.role == worker.RoleCompile {
		// No RLIMIT_AS on run workers: they reserve address space for their
		// modules.
		list = append(list, same(unix.RLIMIT_CPU, uint64(max(1, c.limits.CompileTime/time.Second))),
			same(unix.RLIMIT_AS, uint64(c.limits.CompileMemory)+goReserve), same(unix.RLIMIT_FSIZE, maxArtefactFile))
	}
	return list
}

// goReserve is address space that the Go runtime maps without using it.
const goReserve = 512 << 20

// sendFiles writes a frame with descriptors.
func (c *child) sendFiles(frame []byte, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(fds...)
	var serr error
	err = raw.Write(func(fd uintptr) bool {
		serr = unix.Sendmsg(int(fd), frame, rights, nil, unix.MSG_NOSIGNAL)
		return serr != unix.EAGAIN
	})
	runtime.KeepAlive(files)
	if err == nil {
		err = os.NewSyscallError("sendmsg", serr)
	}
	return err
}

// kill ends the process. It does not wait.
func (c *child) kill() {
	if c.killed.Swap(true) {
		return
	}
	// An error means that it has ended, or that somebody has waited for it.
	if rc, err := c.pidfd.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// reap waits until the process has ended.
func (c *child) reap() (unix.WaitStatus, unix.Rusage, error) {
	defer c.pidfd.Close()
	return spawn.Wait(c.pid, c.pidfd)
}

// wait returns when the process has ended and nothing of it is left.
func (c *child) wait() childEnd {
	c.once.Do(func() {
		ws, ru, err := c.reap()
		if err != nil {
			c.end.status = fmt.Sprint(err)
			return
		}
		c.end.cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
		if ws.Signaled() {
			c.end.status = "ended by " + unix.SignalName(ws.Signal())
			c.end.cpuLimit = ws.Signal() == unix.SIGXCPU ||
				c.role == worker.RoleCompile && ws.Signal() == unix.SIGKILL && c.end.cpu >= c.limits.CompileTime
		} else {
			c.end.status = fmt.Sprintf("exited with status %d", ws.ExitStatus())
		}
		c.end.stderr = c.lastWords()
		c.end.memoryLimit = c.group.Read().OOM > 0 || outOfMemory(c.end.stderr)
		failpoint.Hit(failpoint.Killed)
		c.unaccount()
	})
	return c.end
}

// lastWords reads what the worker said, and takes the first line: a Go program
// that dies goes on with the stacks of its goroutines.
func (c *child) lastWords() string {
	defer c.stderr.Close()
	b, _ := io.ReadAll(io.LimitReader(c.stderr, 4096))
	first, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return strings.ToValidUTF8(string(first[:min(len(first), 300)]), "?")
}

// cpuTime reads the CPU clock of the process (clock_getcpuclockid(3)).
func (c *child) cpuTime() (time.Duration, bool) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^c.pid<<3|sched), &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}

// Read reads from the worker. While busy is set it looks again and again for a
// short time before it sleeps.
func (c *child) Read(b []byte) (int, error) {
	if !c.busy.Load() {
		return c.File.Read(b)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var rerr error
	begin := time.Now()
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, rerr = unix.Read(int(fd), b)
			if rerr != unix.EAGAIN && rerr != unix.EINTR || time.Since(begin) > linger {
				return true
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case rerr == unix.EAGAIN || rerr == unix.EINTR:
		return c.File.Read(b)
	case rerr != nil:
		return 0, os.NewSyscallError("read", rerr)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// undo runs its functions, last first, unless all went well.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

func (u *undo) unless(ok bool) {
	for i := len(*u) - 1; i >= 0 && !ok; i-- {
		(*u)[i]()
	}
}

func (l *launcher) close() {
	l.spawner.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.memfd != nil {
		l.memfd.Close()
	}
}

// depends lists the files that workers are made of.
func (l *launcher) depends() []string {
	if l.progErr != nil || l.prog.content != nil {
		return nil
	}
	return []string{l.prog.path}
}

func (l *launcher) describe() string { return l.prog.how }

func (l *launcher) warnings() []string {
	if l.prog.warning != "" {
		return []string{l.prog.warning}
	}
	return nil
}

// memoryWall is the second wall behind the memory limit, in words.
func (l *launcher) memoryWall() string {
	if !l.groups.Has(cgroup.Memory) {
		return ""
	}
	return fmt.Sprintf("; %s of the worker, %d MiB above", l.groups.Version(), headroom>>20)
}

func (l *launcher) cgroupWall() isolation.Wall {
	if !l.groups.Has(cgroup.Memory) {
		return isolation.Wall{Name: "cgroup", Detail: l.groups.Why(cgroup.Memory)}
	}
	return isolation.Wall{Name: "cgroup", Present: true, Detail: l.groups.Version() + " memory below " + l.groups.Base(cgroup.Memory)}
}
