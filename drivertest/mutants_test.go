package drivertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
)

// mutant is a driver that is wrong in one way: what is set of it replaces what
// the driver inside does.
type mutant struct {
	isolation.Driver
	probe  func(*isolation.Features)
	create func(d isolation.Driver, ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error)
	exec   func(sb isolation.Sandbox, ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error)
	state  func(*isolation.State)
	delete func(sb isolation.Sandbox, ctx context.Context, nth int) error
	kill   func(p isolation.Process, ctx context.Context, sig isolation.Signal) error
	wait   func(p isolation.Process, ctx context.Context) (isolation.Exit, error)
	close  func(isolation.Driver) error
	inside func(isolation.Driver) any // what As finds instead of the driver inside
}

func (m *mutant) Unwrap() any {
	if m.inside != nil {
		return m.inside(m.Driver)
	}
	return m.Driver
}

func (m *mutant) Probe(ctx context.Context) (isolation.Features, error) {
	f, err := m.Driver.Probe(ctx)
	if m.probe != nil {
		m.probe(&f)
	}
	return f, err
}

func (m *mutant) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	create := isolation.Driver.Create
	if m.create != nil {
		create = m.create
	}
	sb, err := create(m.Driver, ctx, id, spec)
	if err != nil {
		return nil, err
	}
	return &mutantSandbox{Sandbox: sb, m: m}, nil
}

func (m *mutant) Close() error {
	if m.close != nil {
		return m.close(m.Driver)
	}
	return m.Driver.Close()
}

type mutantSandbox struct {
	isolation.Sandbox
	m  *mutant
	mu sync.Mutex
	n  int // guarded by mu; calls of Delete
}

func (s *mutantSandbox) Unwrap() any { return s.Sandbox }

func (s *mutantSandbox) State(ctx context.Context) (isolation.State, error) {
	st, err := s.Sandbox.State(ctx)
	if s.m.state != nil {
		s.m.state(&st)
	}
	return st, err
}

func (s *mutantSandbox) Delete(ctx context.Context) error {
	s.mu.Lock()
	s.n++
	n := s.n
	s.mu.Unlock()
	if s.m.delete != nil {
		return s.m.delete(s.Sandbox, ctx, n)
	}
	return s.Sandbox.Delete(ctx)
}

func (s *mutantSandbox) Exec(ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	run := isolation.Sandbox.Exec
	if s.m.exec != nil {
		run = s.m.exec
	}
	proc, err := run(s.Sandbox, ctx, p, stdio)
	if err != nil {
		return nil, err
	}
	return &mutantProcess{proc, s.m}, nil
}

type mutantProcess struct {
	isolation.Process
	m *mutant
}

func (p *mutantProcess) Kill(ctx context.Context, sig isolation.Signal) error {
	if p.m.kill != nil {
		return p.m.kill(p.Process, ctx, sig)
	}
	return p.Process.Kill(ctx, sig)
}

func (p *mutantProcess) Wait(ctx context.Context) (isolation.Exit, error) {
	if p.m.wait != nil {
		return p.m.wait(p.Process, ctx)
	}
	return p.Process.Wait(ctx)
}

func memConfig(m mutant) Config {
	mc := mem.Config{Host: mem.NewHost()}
	c := Config{
		New: func(testing.TB) isolation.Driver {
			own := m
			own.Driver = mem.New(mc)
			return &own
		},
		Command: func(p Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			return isolation.Spec{Requirement: isolation.Shell}, isolation.ProcessSpec{Args: append([]string{string(p)}, args...)}, true
		},
		Patience: 2 * time.Second,
	}
	c.Host = func(_ testing.TB, st Story) (stdout, stderr io.Reader, kill func()) {
		d := mem.New(mc)
		return HostHere(d, c, st, d.Crash)
	}
	return c
}

// loseFirst is an Attacher that loses the first byte of what was written before.
type loseFirst struct{ isolation.Sandbox }

func (l loseFirst) Unwrap() any { return l.Sandbox }

func (l loseFirst) Attach(ctx context.Context, id string, from isolation.Offsets, stdio isolation.Stdio) (isolation.Process, error) {
	a, _ := isolation.As[isolation.Attacher](l.Sandbox)
	w, lost := stdio.Stdout, false
	if w != nil {
		stdio.Stdout = writerFunc(func(b []byte) (int, error) {
			n := len(b)
			if !lost {
				lost, b = true, b[1:]
			}
			_, err := w.Write(b)
			return n, err
		})
	}
	return a.Attach(ctx, id, from, stdio)
}

// loseRecovered has the sandboxes that it recovers lose a byte.
type loseRecovered struct{ isolation.Recoverer }

func (l loseRecovered) Recover(ctx context.Context, id string) (isolation.Sandbox, error) {
	sb, err := l.Recoverer.Recover(ctx, id)
	if err != nil {
		return nil, err
	}
	return loseFirst{sb}, nil
}

// anyHolder recovers what another has.
type anyHolder struct {
	isolation.Recoverer
	create func(id string) (isolation.Sandbox, error)
}

func (a anyHolder) Recover(ctx context.Context, id string) (isolation.Sandbox, error) {
	sb, err := a.Recoverer.Recover(ctx, id)
	if errors.Is(err, isolation.ErrFailedPrecondition) {
		return a.create("stolen-" + id)
	}
	return sb, err
}

// find returns a check by its group and name.
func find(t *testing.T, name string) check {
	t.Helper()
	for _, g := range groups() {
		for _, c := range g.checks {
			if g.name+"/"+c.name == name {
				return c
			}
		}
	}
	t.Fatalf("there is no check %q", name)
	return check{}
}

// try runs one check on a driver of its own.
func try(t *testing.T, c Config, name string) *recorder {
	t.Helper()
	ck := find(t, name)
	return record(t, func(t testing.TB) {
		s := newSuite(t, c)
		t.Cleanup(func() { _ = s.d.Close() })
		ck.f(t, s)
	})
}

type execFunc = func(isolation.Sandbox, context.Context, isolation.ProcessSpec, isolation.Stdio) (isolation.Process, error)

// inner calls Exec of the driver inside after change.
func inner(change func(*isolation.ProcessSpec, *isolation.Stdio)) execFunc {
	return func(sb isolation.Sandbox, ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
		change(&p, &stdio)
		return sb.Exec(ctx, p, stdio)
	}
}

// waited calls Wait of the driver inside and then change.
func waited(change func(*isolation.Exit)) func(isolation.Process, context.Context) (isolation.Exit, error) {
	return func(p isolation.Process, ctx context.Context) (isolation.Exit, error) {
		e, err := p.Wait(ctx)
		change(&e)
		return e, err
	}
}

// short is a writer that takes so many bytes and drops the rest in silence.
type short struct {
	w    io.Writer
	left int
}

func (s *short) Write(b []byte) (int, error) {
	keep := min(len(b), s.left)
	s.left -= keep
	_, err := s.w.Write(b[:keep])
	return len(b), err
}

func TestMutants(t *testing.T) {
	t.Setenv(canary, "inherited")
	for _, c := range []struct {
		what  string
		check string
		m     mutant
	}{
		{"Delete works once", "lifecycle/delete twice", mutant{
			delete: func(sb isolation.Sandbox, ctx context.Context, nth int) error {
				if nth > 1 {
					return isolation.ErrNotFound
				}
				return sb.Delete(ctx)
			},
		}},
		{"Delete leaves processes", "lifecycle/delete running", mutant{
			delete: func(sb isolation.Sandbox, _ context.Context, nth int) error { return nil },
		}},
		{"State lies", "lifecycle/state", mutant{state: func(s *isolation.State) { s.Status = isolation.StatusRunning }}},
		{"an id is taken twice", "ids/duplicate", mutant{
			create: func(d isolation.Driver, ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
				sb, err := d.Create(ctx, id, spec)
				if errors.Is(err, isolation.ErrAlreadyExists) {
					sb, err = d.Create(ctx, id+".2", spec)
				}
				return sb, err
			},
		}},
		{"any id is taken", "ids/forms", mutant{
			create: func(d isolation.Driver, ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
				if isolation.ValidateID(id) != nil {
					id = "x"
				}
				return d.Create(ctx, id, spec)
			},
		}},
		{"a limit is ignored", "limits/wall asleep", mutant{
			exec: inner(func(p *isolation.ProcessSpec, _ *isolation.Stdio) { p.Limits.Wall = 0 }),
		}},
		{"a limit is not told", "arguments/unsupported", mutant{
			probe: func(f *isolation.Features) {
				f.Enforces = slices.DeleteFunc(f.Enforces, func(e isolation.Enforcement) bool { return e.Limit == isolation.LimitPids })
			},
		}},
		{"an ability is told and missing", "abilities/told and found", mutant{
			probe: func(f *isolation.Features) { f.Abilities = append(f.Abilities, isolation.AbilityPrepare) },
		}},
		{"an ability is there and not told", "abilities/told and found", mutant{
			probe: func(f *isolation.Features) { f.Abilities = f.Abilities[1:] },
		}},
		{"environment is inherited", "arguments/env is not inherited", mutant{
			exec: inner(func(p *isolation.ProcessSpec, _ *isolation.Stdio) {
				p.Env = append(slices.Clone(p.Env), canary+"="+os.Getenv(canary))
			}),
		}},
		{"empty arguments are lost", "arguments/args", mutant{
			exec: inner(func(p *isolation.ProcessSpec, _ *isolation.Stdio) {
				p.Args = slices.DeleteFunc(slices.Clone(p.Args), func(a string) bool { return a == "" })
			}),
		}},
		{"output is cut in silence", "stdio/output sizes", mutant{
			exec: inner(func(_ *isolation.ProcessSpec, s *isolation.Stdio) { s.Stdout = &short{s.Stdout, 64 << 10} }),
		}},
		{"line ends are changed", "stdio/every byte", mutant{
			exec: inner(func(_ *isolation.ProcessSpec, s *isolation.Stdio) {
				w := s.Stdout
				s.Stdout = writerFunc(func(b []byte) (int, error) {
					_, err := w.Write(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")))
					return len(b), err
				})
			}),
		}},
		{"stderr goes to stdout", "stdio/streams apart", mutant{
			exec: inner(func(_ *isolation.ProcessSpec, s *isolation.Stdio) { s.Stderr = s.Stdout }),
		}},
		{"what is dropped is not counted", "stdio/nil output", mutant{
			wait: waited(func(e *isolation.Exit) { e.Stdout.Dropped = 0 }),
		}},
		{"stdin is read without bound", "stdio/stdin never read", mutant{
			exec: inner(func(_ *isolation.ProcessSpec, s *isolation.Stdio) {
				if s.Stdin != nil {
					b, _ := io.ReadAll(io.LimitReader(s.Stdin, 64<<20))
					s.Stdin = bytes.NewReader(b)
				}
			}),
		}},
		{"output comes after Wait", "stdio/output sizes", mutant{
			exec: inner(func(_ *isolation.ProcessSpec, s *isolation.Stdio) {
				w := s.Stdout
				s.Stdout = writerFunc(func(b []byte) (int, error) {
					late := bytes.Clone(b)
					time.AfterFunc(10*time.Millisecond, func() { _, _ = w.Write(late) })
					return len(b), nil
				})
			}),
		}},
		{"Wait waits for a writer that is stuck", "stdio/stdout that blocks, Kill", mutant{exec: stuck}},
		{"the end of Exec's ctx ends the process", "exec/ctx ends after", mutant{
			exec: func(sb isolation.Sandbox, ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
				proc, err := sb.Exec(ctx, p, stdio)
				if err == nil {
					context.AfterFunc(ctx, func() { _ = proc.Kill(context.Background(), isolation.SIGKILL) })
				}
				return proc, err
			},
		}},
		{"the end of Wait's ctx ends the process", "exec/wait ctx", mutant{
			wait: func(p isolation.Process, ctx context.Context) (isolation.Exit, error) {
				e, err := p.Wait(ctx)
				if err != nil {
					_ = p.Kill(context.Background(), isolation.SIGKILL)
					_, _ = p.Wait(context.Background())
				}
				return e, err
			},
		}},
		{"an error does not say that nothing ran", "exec/canceled before", mutant{
			exec: func(sb isolation.Sandbox, ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				return sb.Exec(ctx, p, stdio)
			},
		}},
		{"every signal is KILL", "kill/TERM", mutant{
			kill: func(p isolation.Process, ctx context.Context, sig isolation.Signal) error {
				return p.Kill(ctx, isolation.SIGKILL)
			},
		}},
		{"one that was killed looks as if it had exited", "kill/KILL", mutant{
			wait: waited(func(e *isolation.Exit) {
				*e = isolation.Exit{Reason: isolation.ReasonExited, Code: 137, Stdout: e.Stdout}
			}),
		}},
		{"memory that ran out looks as if it had exited", "limits/memory", mutant{
			wait: waited(func(e *isolation.Exit) {
				if e.Reason == isolation.ReasonOOM {
					e.Reason, e.Code = isolation.ReasonExited, 2
				}
			}),
		}},
		{"the limit that ended it is not listed", "limits/cpu", mutant{
			wait: waited(func(e *isolation.Exit) { e.LimitsHit = nil }),
		}},
		{"what was written before an Attach loses a byte", "abilities/attach to two streams", mutant{
			create: func(d isolation.Driver, ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
				sb, err := d.Create(ctx, id, spec)
				if err != nil {
					return nil, err
				}
				return loseFirst{sb}, nil
			},
		}},
		{"a recovered sandbox loses a byte", "recover/while it writes", mutant{
			inside: func(d isolation.Driver) any {
				r, _ := isolation.As[isolation.Recoverer](d)
				return loseRecovered{r}
			},
		}},
		{"a sandbox is recovered that another has", "recover/delete", mutant{
			inside: func(d isolation.Driver) any {
				r, _ := isolation.As[isolation.Recoverer](d)
				return anyHolder{r, func(id string) (isolation.Sandbox, error) {
					return d.Create(context.Background(), id, isolation.Spec{Requirement: isolation.Shell})
				}}
			},
		}},
		{"Close deletes what is detached", "recover/after Close", mutant{
			create: func(d isolation.Driver, ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
				spec.Detached = false
				return d.Create(ctx, id, spec)
			},
		}},
		{"Close does nothing", "close/with running processes", mutant{close: func(isolation.Driver) error { return nil }}},
	} {
		t.Run(strings.ReplaceAll(c.what, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if r := try(t, memConfig(mutant{}), c.check); r.Failed() || r.skipped != "" {
				t.Fatalf("%s fails without the mutation: %q %s", c.check, r.failures, r.skipped)
			}
			r := try(t, memConfig(c.m), c.check)
			if !r.Failed() {
				t.Errorf("%s did not notice", c.check)
			}
			t.Logf("%s: %.300q", c.check, r.failures)
		})
	}
}

// stuck starts a process whose Wait returns only when no Write is under way.
func stuck(sb isolation.Sandbox, ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	w := &waitingWriter{w: stdio.Stdout}
	if stdio.Stdout != nil {
		stdio.Stdout = w
	}
	proc, err := sb.Exec(ctx, p, stdio)
	if err != nil {
		return nil, err
	}
	return &stuckProcess{proc, w}, nil
}

type waitingWriter struct {
	w  io.Writer
	mu sync.Mutex
}

func (w *waitingWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(b)
}

type stuckProcess struct {
	isolation.Process
	w *waitingWriter
}

func (p *stuckProcess) Wait(ctx context.Context) (isolation.Exit, error) {
	e, err := p.Process.Wait(ctx)
	free := make(chan struct{})
	go func() {
		defer close(free)
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
	}()
	select {
	case <-free:
		return e, err
	case <-ctx.Done():
		return isolation.Exit{}, ctx.Err()
	}
}

// TestLeaks has drivers that leave something behind. It is not parallel: what
// it looks at is the whole process.
func TestLeaks(t *testing.T) {
	release := make(chan struct{})
	var files []*os.File
	var commands []*exec.Cmd
	var made []string
	linux := runtime.GOOS == "linux"
	for what, leak := range map[string]func(){
		"nothing":     func() {},
		"goroutines":  func() { go func() { <-release }() },
		"descriptors": func() { f, _ := os.Open(os.DevNull); files = append(files, f) },
		"child processes": func() {
			cmd := exec.Command("sleep", "60")
			if cmd.Start() == nil {
				commands = append(commands, cmd)
			}
		},
		"things on the host": func() { made = append(made, "cgroup") },
	} {
		if !linux && (what == "descriptors" || what == "child processes") {
			continue
		}
		c := memConfig(mutant{exec: inner(func(*isolation.ProcessSpec, *isolation.Stdio) { leak() })})
		c.Leftovers = func(testing.TB) []string { return slices.Clone(made) }
		before := takeStock(t, c)
		before.grace = 200 * time.Millisecond
		if r := try(t, c, "lifecycle/order"); r.Failed() {
			t.Errorf("%s: %q", what, r.failures)
		}
		r := record(t, before.compare)
		want := what + " are left"
		switch {
		case what == "nothing" && r.Failed():
			t.Errorf("without a leak: %q", r.failures)
		case what != "nothing" && !slices.ContainsFunc(r.failures, func(f string) bool { return strings.HasPrefix(f, want) }):
			t.Errorf("%s: failures are %q, want one that begins with %q", what, r.failures, want)
		}
		made = nil
	}
	close(release)
	for _, f := range files {
		_ = f.Close()
	}
	for _, cmd := range commands {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// TestMissing has tests that leave out what the suite needs.
func TestMissing(t *testing.T) {
	without := func(missing Program) Config {
		c := memConfig(mutant{})
		command := c.Command
		c.Command = func(p Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			spec, ps, ok := command(p, args...)
			return spec, ps, ok && p != missing
		}
		return c
	}
	for _, p := range required {
		if r := try(t, without(p), "probe/programs"); !r.Failed() {
			t.Errorf("nobody noticed that program %q is missing", p)
		}
	}
	if r := try(t, without(Hog), "limits/memory"); !r.Failed() {
		t.Error("nobody noticed that no program shows the memory limit")
	}
	if r := try(t, without(Crash), "kill/crash"); r.Failed() || r.skipped == "" {
		t.Errorf("a check of a program that is not needed was not skipped: %q", r.failures)
	}
}
