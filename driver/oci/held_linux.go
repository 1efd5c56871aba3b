package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// startHeld is the StartHeld of a [proc.Tracked]: the guest holds the program's
// input and output, so that it outlives this process. It is written down first.
func (c *container) startHeld(ctx context.Context, p *proc.Process, mark proc.Mark) (proc.HeldChild, error) {
	s, err := c.process(p.Spec)
	if err != nil {
		return nil, err
	}
	n := note{Limits: p.Spec.Limits, Terminal: s.Terminal, Began: monotonic(), Mark: mark}
	if err := c.kept.Note(p.ID(), n); err != nil {
		return nil, fmt.Errorf("write down the process: %w", err)
	}
	failpoint.Hit(failpoint.OCINoted)
	r, err := c.conn.rest.Exec(ctx, &wire.ExecMessage{
		ID: p.ID(), Args: s.Args, Env: s.Env, Cwd: s.Cwd, User: s.User, Rlimits: c.rlimits(s.Limits, mark.Brand),
		Tty: s.Terminal, Rows: uint64(s.Size.Rows), Cols: uint64(s.Size.Cols), NoStdin: p.Stdio.Stdin == nil,
	})
	if err != nil {
		return nil, errors.Join(err, c.kept.Unnote(p.ID()))
	}
	failpoint.Hit(failpoint.OCIExecuted)
	ch := c.newHeld(p, r)
	p.Hold(proc.Outputs{Stdout: r.Stdout, Stderr: r.Stderr})
	return ch, nil
}

// heldChild is a program whose input and output the guest holds. It implements
// proc.HeldChild.
type heldChild struct {
	c     *container
	p     *proc.Process
	r     *guestconn.Process
	pid   int
	found bool // an earlier process has started it
	ended bool // before this one came

	mu    sync.Mutex
	pidfd *os.File // nil: it has ended
}

// newHeld takes the program's descriptor. One that is none of the sandbox ends the
// connection: the guest is not what it was.
func (c *container) newHeld(p *proc.Process, r *guestconn.Process) *heldChild {
	ch := &heldChild{c: c, p: p, r: r, pidfd: c.conn.pidfd(r.Stream())}
	r.Stdout.Hold()
	r.Stderr.Hold()
	c.held.Add(1)
	if ch.pidfd == nil {
		return ch // the connection has ended
	}
	pid, err := pidOf(ch.pidfd)
	// 0 is one that is not below this process's pid namespace.
	if err == nil && (pid == 0 || pid > 0 && !c.isMember(pid)) {
		// It may have ended since, and the number be another's.
		if pid, err = pidOf(ch.pidfd); err == nil && pid >= 0 {
			err = fmt.Errorf("%w: a descriptor of process %d, which is none of the sandbox", wire.ErrProtocol, pid)
		}
	}
	if err != nil {
		c.eng.cfg.Logger.Error("the guest of a container lies", "sandbox", c.name, "error", err)
		ch.pidfd.Close()
		ch.pidfd = nil
		c.conn.f.Close()
	}
	ch.pid = max(0, pid)
	return ch
}

func (ch *heldChild) Begin() {
	go ch.p.Out.Pump()
	go ch.p.Err.Pump()
	if ch.p.Stdio.Stdin != nil {
		go ch.r.Feed(ch.p.Stdio.Stdin, 0)
	}
}

func (ch *heldChild) PID() int { return ch.pid }

func (ch *heldChild) Signal(sig unix.Signal) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.pidfd == nil {
		return nil
	}
	var serr error
	rc, err := ch.pidfd.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	}
	return errors.Join(err, serr)
}

func (ch *heldChild) Wait() (proc.ChildStatus, error) {
	m, err := ch.r.Wait()
	ch.c.held.Add(-1)
	ch.mu.Lock()
	if ch.pidfd != nil {
		ch.pidfd.Close()
		ch.pidfd = nil
	}
	ch.mu.Unlock()
	switch {
	case err != nil && ch.c.killed.Load(): // with its sandbox
		return proc.ChildStatus{Signal: unix.SIGKILL, Peak: -1}, nil
	case err != nil:
		return proc.ChildStatus{}, err
	}
	st := status(m, 0, 0)
	if m.Cause == wire.CauseSignaled {
		st.Signal = unix.Signal(m.Signal)
	} else {
		st.Code = int(m.Code)
	}
	// When it began is written down before it does: its own clock says how long it ran,
	// where nobody has seen the end.
	if !ch.found || ch.ended {
		st.Wall = time.Duration(min(m.Wall, 1<<62))
	}
	return st, nil
}

func (ch *heldChild) Resize(size isolation.TerminalSize) error { return ch.r.Resize(size) }

func (ch *heldChild) Input() (given int64, ended bool) {
	return int64(ch.r.StdinOffset()), ch.r.StdinEnded()
}

func (ch *heldChild) Feed(from io.Reader, skip int64) { ch.r.Feed(from, skip) }

func (ch *heldChild) Forget() {
	ch.r.Forget()
	failpoint.Hit(failpoint.OCIForgotten)
	if err := ch.c.kept.Unnote(ch.r.ID()); err != nil {
		ch.c.eng.cfg.Logger.Warn("the record of a program that has ended stays", "sandbox", ch.c.name, "program", ch.r.ID(), "error", err)
	}
}
