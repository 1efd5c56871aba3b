package none

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/spawn"
)

// softFiles is the soft limit on descriptors of a program whose spec names
// none: what every Linux starts with. The host program's own is no measure, as
// Go raises it to the hard one.
const softFiles = 1024

// child is a program that was started, and its pidfd.
type child struct {
	pid      int
	fd       *os.File
	hostPeak int64 // resident peak of the host program at the start
}

func (c *child) PID() int { return c.pid }

func startChild(s *spawn.Spawner, g program, p isolation.ProcessSpec, files [3]*os.File, b proc.Brand, group *cgroup.Group) (*child, error) {
	limits, err := rlimits(p.Limits, b)
	if err != nil {
		return nil, err
	}
	spec := spawn.Spec{
		Path: g.path, Args: p.Args, Env: p.Env, Dir: g.dir, Files: files[:],
		Rlimits: limits, Tasks: group.Joins(), Group: group.Into(), ParentDeathSignal: syscall.SIGKILL,
	}
	if g.cred != nil {
		spec.Cred = &spawn.Credential{UID: g.cred.uid, GID: g.cred.gid, Groups: g.cred.groups}
	}
	pid, fd, err := s.Start(spec)
	if err != nil {
		return nil, startError(g, err)
	}
	return &child{pid: pid, fd: fd}, nil
}

func rlimits(l isolation.Limits, b proc.Brand) ([]spawn.Rlimit, error) {
	var host unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &host); err != nil {
		return nil, os.NewSyscallError("getrlimit", err)
	}
	files := spawn.Rlimit{Resource: unix.RLIMIT_NOFILE, Cur: min(softFiles, host.Max), Max: host.Max}
	if n := uint64(l.OpenFiles); n > 0 {
		files.Cur, files.Max = n, n
	}
	out := []spawn.Rlimit{
		{Resource: unix.RLIMIT_CORE},
		{Resource: unix.RLIMIT_RTTIME, Cur: uint64(b), Max: uint64(b)},
		files,
	}
	if l.CPU > 0 {
		// For each process of the tree, in whole seconds: what is left if the
		// host program is stopped and cannot watch. The margin keeps it from
		// being first.
		s := uint64(l.CPU.Seconds()) + 2
		out = append(out, spawn.Rlimit{Resource: unix.RLIMIT_CPU, Cur: s, Max: s + 1})
	}
	return out, nil
}

// startError gives a failed start its class.
func startError(g program, err error) error {
	var class error
	var why string
	switch {
	case errors.Is(err, os.ErrClosed):
		class, why = isolation.ErrFailedPrecondition, "the driver is closed"
	case errors.Is(err, unix.ENOENT):
		// The file was there a moment ago.
		class, why = isolation.ErrNotFound, "the file, or the interpreter that it names, is not there"
	case errors.Is(err, unix.ENOEXEC):
		class, why = isolation.ErrInvalidArgument, "not a program for this host, and no script either"
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		class = isolation.ErrInvalidArgument
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		class = isolation.ErrPermissionDenied
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		class = isolation.ErrResourceExhausted
	default:
		return fmt.Errorf("start %s: %w", g.path, err)
	}
	if why == "" {
		return fmt.Errorf("start %s: %w (%w)", g.path, err, class)
	}
	return fmt.Errorf("start %s: %w: %s (%w)", g.path, err, why, class)
}

// Wait parks until the program ended, and reaps it.
func (c *child) Wait() (proc.ChildStatus, error) {
	defer c.fd.Close()
	ws, ru, err := spawn.Wait(c.pid, c.fd)
	failpoint.Hit(failpoint.NoneEnded)
	if err != nil {
		// Its end was seen and its status was not: somebody else in the host
		// program reaps children that are not theirs.
		return proc.ChildStatus{}, fmt.Errorf("its exit status was taken by another waiter: %w", err)
	}
	st := proc.ChildStatus{
		CPU:  time.Duration(ru.Utime.Nano() + ru.Stime.Nano()),
		Peak: -1, Read: ru.Inblock * 512, Written: ru.Oublock * 512, // getrusage(2)
	}
	// An exec out of this program starts from the host program's peak, so
	// that only a larger one is the program's own.
	if rss := ru.Maxrss << 10; rss > c.hostPeak {
		st.Peak = rss
	}
	if ws.Signaled() {
		st.Signal = ws.Signal()
	} else {
		st.Code = ws.ExitStatus()
	}
	return st, nil
}

// Signal does nothing to a program that was reaped.
func (c *child) Signal(s unix.Signal) error {
	rc, err := c.fd.SyscallConn()
	var serr error
	if err == nil { // an error means that the descriptor is closed
		_ = rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), s, nil, 0) })
	}
	return serr
}
