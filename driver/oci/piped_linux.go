package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/driver/oci/internal/document"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/spawn"
)

// piped is a sandbox into which its runtime passes no descriptors: the guest
// speaks frames on its standard input and output. All of the sandbox, which is
// one program of the host whatever runs in it, is in the control group.
type piped struct {
	*container
	guestconn.Programs
	said *os.File // the guest's output, ours
	hear *os.File // its input, ours
	// idle is what the sandbox takes without programs. The memory limit is above
	// it, with room for what it takes besides when programs run.
	idle   int64
	killed atomic.Bool // by this side
}

// pipedRoom is more than a kernel in user space was seen to take for programs
// that compute: file contents that it keeps, its heap, stubs.
const pipedRoom = 32 << 20

// pipedPlan is where the guest finds its plan.
const pipedPlan = "/.axo-plan"

func (h *hosted) createPiped(ctx context.Context, id string, spec isolation.Spec) (_ *piped, err error) {
	if h.guestErr != nil {
		return nil, h.guestErr
	}
	s := &piped{container: &container{eng: h.builtin, req: spec.Requirement}}
	c := s.container
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			err = errors.Join(err, s.Remove(undo))
		}
	}()
	if c.brand, err = proc.NewBrand(); err != nil {
		return nil, err
	}
	b, d, err := h.prepare(ctx, c, spec)
	if err != nil {
		return nil, err
	}
	// A runtime in the group, and processes of its own, are not to be taken for
	// the programs'. Those are bounded below and inside.
	outside := cgroup.Limits{CPUs: d.Limits.CPUs, IO: d.Limits.IO}
	if err := h.account(c, id, outside); err != nil {
		return nil, err
	}
	if err := c.group.Impose(outside); err != nil {
		return nil, fmt.Errorf("limit control group: %w", err)
	}
	if err := h.launchPiped(ctx, s, b, d); err != nil {
		return nil, err
	}
	if n := d.Limits.MemoryBytes; n > 0 {
		s.idle = c.group.Memory()
		if err := c.group.LimitMemory(s.idle + n + pipedRoom); err != nil {
			return nil, fmt.Errorf("limit memory: %w", err)
		}
	}
	s.Resources, s.Request, s.PID = spec.Resources, s.request(d.Limits.Pids), c.pid
	s.Programs.Lost = func(err error) error { return fmt.Errorf("%w%s", err, c.lastWords()) }
	return s, nil
}

func (h *hosted) launchPiped(ctx context.Context, s *piped, b *bundle.Bundle, d *document.Container) error {
	c := s.container
	r, st, err := h.stage(c, b, d)
	if err != nil {
		return err
	}
	p := &d.Plan
	p.Loopback = false // the runtime has set it up
	// These are of the runtime's own kernel, which shows nothing of the host and
	// does not know mount_setattr.
	p.Masked, p.ReadOnly = nil, nil
	for i := range p.Mounts {
		if p.Mounts[i].Source != "" && strings.HasPrefix(p.Mounts[i].Target, "/dev/") {
			p.Mounts[i].Attr = 0
		}
	}
	st.plan = p.Append(nil)
	st.config.Process.Args = append(st.config.Process.Args, "stdio", pipedPlan)
	st.config.Mounts = append(st.config.Mounts, specs.Mount{
		Destination: pipedPlan, Type: "bind", Source: planFile, Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"},
	})
	if err := st.make(); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	var l launch
	defer l.close()
	in, hear, err := os.Pipe()
	if err != nil {
		return err
	}
	l.keep(in)
	s.hear = hear
	said, out, err := os.Pipe()
	if err != nil {
		return err
	}
	l.keep(out)
	s.said = said
	stderr, errs, err := os.Pipe()
	if err != nil {
		return err
	}
	c.stderr = stderr
	l.files = []*os.File{in, out, l.keep(errs)}
	for _, f := range l.files {
		f.Fd() // lets it block: how a guest waits is its own affair
	}
	if err := r.run(&l, st, spawn.Spec{Tasks: c.group.Joins(), Group: c.group.Into()}); err != nil {
		return err
	}
	conn, err := guestconn.Open(ctx, pipePair{said, hear}, nil)
	if err != nil {
		return fmt.Errorf("make the container: %w%s", err, c.lastWords())
	}
	s.Conn = conn
	c.notes = conn.Hello().Notes
	if err := r.findGuest(ctx, st.path(pidFile)); err != nil {
		return err
	}
	failpoint.Hit(failpoint.OCIMade)
	return nil
}

// pipePair is a connection of two pipes.
type pipePair struct{ r, w *os.File }

func (p pipePair) Read(b []byte) (int, error)  { return p.r.Read(b) }
func (p pipePair) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p pipePair) Close() error                { return errors.Join(p.r.Close(), p.w.Close()) }

var _ io.ReadWriteCloser = pipePair{}

// request makes requests of processes.
func (s *piped) request(pids int64) func(*proc.Process) (*wire.ExecMessage, error) {
	return func(p *proc.Process) (*wire.ExecMessage, error) {
		spec, err := s.process(p.Spec)
		if err != nil {
			return nil, err
		}
		m := &wire.ExecMessage{
			Args: spec.Args, Env: spec.Env, Cwd: spec.Cwd, User: spec.User, Rlimits: s.rlimits(spec.Limits, 0),
			Tty: spec.Terminal, Rows: uint64(spec.Size.Rows), Cols: uint64(spec.Size.Cols),
		}
		if n := uint64(pids); n > 0 {
			m.Rlimits = append(m.Rlimits, wire.Rlimit{Resource: unix.RLIMIT_NPROC, Cur: n, Max: n})
		}
		return m, nil
	}
}

// Start implements [proc.Place].
func (s *piped) Start(ctx context.Context, p *proc.Process) (proc.Task, error) {
	before := s.group.Read()
	t, err := s.StartHeld(ctx, p)
	if err != nil {
		return nil, err
	}
	return &pipedTask{Holder: t, s: s, before: before}, nil
}

// Prepare implements [proc.Preparer].
func (s *piped) Prepare(ctx context.Context, language string) error {
	return s.Conn.Prepare(ctx, language, s.imageEnv())
}

// Files implements [proc.Filer]: there are none. The guest does file operations as
// their user by setfsuid(2), which gVisor has not.
func (s *piped) Files() proc.Files { return nil }

// Ports implements [proc.Porter].
func (s *piped) Ports() proc.Ports { return &guestconn.Ports{Conn: s.Conn} }

// Lost reports whether the sandbox has ended by itself.
func (s *piped) Lost() bool { return ended(s.Conn.Gone()) }

func ended(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Kill ends the sandbox with all that is in it.
func (s *piped) Kill(ctx context.Context) error {
	s.killed.Store(true)
	if s.pidfd != nil {
		s.killGuest()
	}
	if s.group == nil {
		return nil
	}
	return s.group.Kill(ctx)
}

// Remove implements [proc.Place].
func (s *piped) Remove(ctx context.Context) error {
	if err := s.container.Remove(ctx); err != nil {
		return err
	}
	switch {
	case s.Conn != nil:
		_ = s.Conn.Close()
	case s.hear != nil:
		s.hear.Close()
		if s.said != nil {
			s.said.Close()
		}
	}
	return nil
}

// pipedTask adds to a program what only the control group of its sandbox tells.
type pipedTask struct {
	proc.Holder
	s      *piped
	before cgroup.Counters
	killed atomic.Bool
}

func (t *pipedTask) Kill() {
	t.killed.Store(true)
	t.Holder.Kill()
}

// Resize implements [proc.Resizer].
func (t *pipedTask) Resize(ctx context.Context, size isolation.TerminalSize) error {
	r, ok := t.Holder.(proc.Resizer)
	if !ok {
		return proc.Unsupported("a change of size", "a terminal")
	}
	return r.Resize(ctx, size)
}

func (t *pipedTask) Wait() proc.Status {
	st := t.Holder.Wait()
	switch {
	case !st.Lost:
		return st
	case t.s.killed.Load(): // with its sandbox
		return proc.Status{Signal: isolation.SIGKILL, Forced: t.killed.Load(), Ended: st.Ended, CPU: st.CPU, Peak: st.Peak}
	case t.s.group == nil:
		return st
	}
	// The kernel ends all of the sandbox for want of memory, programs included.
	now := t.s.group.Read()
	if n := now.OOM - t.before.OOM; n > 0 {
		limit := t.s.Resources.MemoryBytes
		return proc.Status{
			Signal: isolation.SIGKILL, OOM: n, Ended: time.Now(), CPU: st.CPU, Peak: min(max(0, now.Peak-t.s.idle), limit),
			Hits: []isolation.LimitHit{{Limit: isolation.LimitMemory, Count: n, Value: limit}},
		}
	}
	return st
}

// try implements sandbox.
func (s *piped) try(ctx context.Context, script string) (code, sig int, err error) {
	p, err := s.Conn.Exec(ctx, &wire.ExecMessage{ID: "try", Args: []string{"/bin/sh", "-c", script}, NoStdin: true, Rlimits: s.limits})
	if err != nil {
		return 0, 0, fmt.Errorf("%w%s", err, s.lastWords())
	}
	p.Stdout.Close()
	p.Stderr.Close()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	m, err := p.Wait()
	if err != nil {
		return 0, 0, fmt.Errorf("%w%s", err, s.lastWords())
	}
	p.Forget()
	return int(m.Code), int(m.Signal), nil
}
