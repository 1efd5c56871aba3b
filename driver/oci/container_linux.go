package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/journal"
)

// container is one sandbox.
type container struct {
	*proc.Tracked
	eng    *builtin
	name   string // of what the host has of it
	brand  proc.Brand
	group  *cgroup.Group // nil: none
	entry  Entry         // nil: none
	kept   *journal.Kept // its record, if it outlives this process; nil: it does not
	killed atomic.Bool   // by this side
	held   atomic.Int32  // programs whose end the guest has not told
	// resumeAt is the mark of the last program that an earlier process has started.
	resumeAt proc.Brand
	pausedAt int64 // as in its record; see session.Paused
	ids      *idMap
	root     *root.FS // nil: the host's system directories
	req      isolation.Requirement
	conn     *conn
	pid      int
	pidfd    *os.File
	stderr   *os.File
	notes    []string
	limits   []wire.Rlimit  // of every program
	kind     *kindOfSandbox // nil: its kind is not remembered
	// runtime is the program that made it; nil: this one did.
	runtime *runtimeContainer
}

// isMember reports whether a process is one of this sandbox's programs.
func (c *container) isMember(pid int) bool {
	// One that has ended by now is in no group any more, and has its brand.
	if proc.BrandOf(pid).SameSandbox(c.brand) {
		return true
	}
	if c.group == nil {
		return false
	}
	pids, err := c.group.PIDs()
	return err == nil && slices.Contains(pids, pid)
}

// lastWords is what the guest wrote before it ended.
func (c *container) lastWords() string {
	if c.stderr == nil {
		return ""
	}
	if c.pidfd != nil {
		c.killGuest()
	}
	_ = c.stderr.SetReadDeadline(time.Now().Add(time.Second))
	b, _ := io.ReadAll(io.LimitReader(c.stderr, 2048))
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return ""
	}
	return "; the guest said: " + strings.ToValidUTF8(string(b), "?")
}

// Lost reports whether the container has ended by itself.
func (c *container) Lost() bool { return isClosed(c.conn.gone) }

func (c *container) killGuest() {
	rc, err := c.pidfd.SyscallConn()
	if err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// process completes what is to be started from the image's configuration.
func (c *container) process(p isolation.ProcessSpec) (isolation.ProcessSpec, error) {
	if c.root == nil {
		return p, nil
	}
	user := p.User // the image's is in the plan
	p, err := c.root.Config.Process(c.req, p)
	p.User = user
	return p, err
}

// startProgram is the Start of a [proc.Tracked].
func (c *container) startProgram(ctx context.Context, p *proc.Process, files [3]*os.File, b proc.Brand) (proc.Child, error) {
	s, err := c.process(p.Spec)
	if err != nil {
		return nil, err
	}
	m := wire.SpawnMessage{
		Args: s.Args, Env: s.Env, Cwd: s.Cwd, User: s.User, Rlimits: c.rlimits(s.Limits, b),
		Tty: s.Terminal, Rows: uint64(s.Size.Rows), Cols: uint64(s.Size.Cols),
	}
	ch, err := c.conn.spawn(ctx, &m, files[:])
	if err != nil {
		return nil, err
	}
	return ch, nil
}

// imageEnv is what every program has in its environment.
func (c *container) imageEnv() []string {
	if c.root == nil {
		return nil
	}
	return c.root.Config.Env
}

// Prepare implements [proc.Preparer].
func (c *container) Prepare(ctx context.Context, language string) error {
	c.Occupied()
	return c.conn.prepare(ctx, language, c.imageEnv())
}

// rlimits are those of a program: the container's, what it may itself, and the
// brand.
func (c *container) rlimits(l isolation.Limits, b proc.Brand) []wire.Rlimit {
	out := slices.Clone(c.limits)
	if n := uint64(l.OpenFiles); n > 0 {
		out = slices.DeleteFunc(out, func(r wire.Rlimit) bool { return r.Resource == unix.RLIMIT_NOFILE })
		out = append(out, wire.Rlimit{Resource: unix.RLIMIT_NOFILE, Cur: n, Max: n})
	}
	if b != 0 {
		out = append(out, wire.Rlimit{Resource: unix.RLIMIT_RTTIME, Cur: uint64(b), Max: uint64(b)})
	}
	if l.CPU > 0 {
		// As for tier none: what is left if the host cannot watch.
		s := uint64(l.CPU.Seconds()) + 2
		out = append(out, wire.Rlimit{Resource: unix.RLIMIT_CPU, Cur: s, Max: s + 1})
	}
	return out
}

// Remove ends the container and everything in it: with the first process of a
// pid namespace the kernel kills all others (pid_namespaces(7)), and the
// namespaces and mounts go with the last of them.
func (c *container) Remove(ctx context.Context) error {
	if c.kept != nil {
		if err := c.kept.Unready(); err != nil {
			return err
		}
		failpoint.Hit(failpoint.OCIUnready)
	}
	if c.runtime != nil {
		if err := c.runtime.remove(ctx); err != nil {
			return err
		}
	}
	if err := c.endGuest(ctx); err != nil {
		return err
	}
	if c.conn != nil {
		c.conn.f.Close()
	}
	if c.stderr != nil {
		c.stderr.Close()
		c.stderr = nil
	}
	if c.Tracked != nil {
		if err := c.Tracked.Remove(ctx); err != nil {
			return err
		}
	} else if err := c.group.Delete(ctx); err != nil {
		return err
	}
	c.group = nil
	failpoint.Hit(failpoint.OCIRemoved)
	if c.ids != nil {
		c.ids.release()
	}
	c.root.Release()
	if c.entry != nil {
		return c.entry.Done()
	}
	return nil
}

// endGuest ends the first process, and with it all others.
func (c *container) endGuest(ctx context.Context) error {
	if c.pidfd == nil {
		return nil
	}
	c.killed.Store(true)
	c.killGuest()
	// The kernel kills all others with it, which on version 1 do not die while they stand still.
	if err := c.group.EndFreeze(); err != nil {
		return err
	}
	if err := awaitEnd(ctx, c.pid, c.pidfd); err != nil {
		return fmt.Errorf("the container's first process: %w", err)
	}
	c.pidfd.Close()
	c.pidfd = nil
	failpoint.Hit(failpoint.OCIEnded)
	return nil
}

// Kill implements [proc.Place]. When nobody waits for a program any more, the kernel
// kills the rest with the guest, in one go. A program that somebody waits for has
// been killed by now; the guest has to be there to tell of its end.
func (c *container) Kill(ctx context.Context) error {
	if c.kept != nil {
		return c.killKept(ctx)
	}
	if c.runtime == nil && c.conn.idle(ctx) {
		return c.endGuest(ctx)
	}
	return c.Tracked.Kill(ctx)
}

// awaitEnd waits for the end of a process, and reaps one of this process's.
func awaitEnd(ctx context.Context, pid int, pidfd *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	err = rc.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
	if err != nil && ctx.Err() != nil {
		_ = pidfd.SetReadDeadline(time.Time{})
		return ctx.Err()
	}
	for err == nil {
		if _, werr := unix.Wait4(pid, nil, unix.WNOHANG, nil); werr != unix.EINTR {
			break // reaped, or another's child
		}
	}
	return err
}

// awaitChild reaps a child of this process.
func awaitChild(ctx context.Context, pid int, pidfd *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = rc.Read(func(uintptr) bool {
		for {
			var got int
			got, werr = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			if werr != unix.EINTR {
				return got != 0
			}
		}
	})
	if err != nil && ctx.Err() != nil {
		_ = pidfd.SetReadDeadline(time.Time{})
		return ctx.Err()
	}
	if err == nil && werr != nil && werr != unix.ECHILD {
		err = os.NewSyscallError("wait4", werr)
	}
	return err
}
