package none

import (
	"context"
	"fmt"
	"io"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// maxStack bounds what a panic writes to stderr.
const maxStack = 16 << 10

// NewFunc returns the engine "func".
func NewFunc(c FuncConfig) (*Driver, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	return proc.New(&funcEngine{funcs: maps.Clone(c.Funcs), drain: c.Drain}, c.Drain), nil
}

type funcEngine struct {
	funcs map[string]Func
	drain time.Duration
	stuck atomic.Int64 // functions that run on after their Exit
}

func (e *funcEngine) Name() string { return "func" }

func (e *funcEngine) Features() isolation.Features {
	no := func(l isolation.Limit, why string) isolation.Enforcement {
		return isolation.Enforcement{Limit: l, Reason: why}
	}
	const shared = "a Go function shares the program's "
	f := isolation.Features{
		Tier: isolation.TierNone, Engine: "func",
		Runs:      []isolation.Requirement{isolation.NativeTrusted},
		Functions: slices.Sorted(maps.Keys(e.funcs)),
		Enforces: []isolation.Enforcement{
			{Limit: isolation.LimitWall, Enforced: true, By: "host timer: the call ends, and the function if it heeds its context"},
			{Limit: isolation.LimitOutput, Enforced: true, By: "host pump"},
			no(isolation.LimitCPUTime, shared+"threads"),
			no(isolation.LimitMemory, shared+"heap"),
			no(isolation.LimitCPUs, shared+"scheduler"),
			no(isolation.LimitPids, shared+"process"),
			no(isolation.LimitFiles, shared+"descriptors"),
			no(isolation.LimitDisk, shared+"file systems"),
			no(isolation.LimitIO, shared+"file systems"),
		},
		Walls: []isolation.Wall{{Name: "process", Detail: "the function runs inside the host program"}},
		Warnings: []string{
			"a function that ignores its context cannot be stopped",
			"a panic in a goroutine that a function started ends the whole program",
		},
	}
	if n := e.stuck.Load(); n > 0 {
		f.Warnings = append(f.Warnings, fmt.Sprintf("%d functions are still running after their end", n))
	}
	return f
}

// Probe runs a function through all of the engine.
func (e *funcEngine) Probe(ctx context.Context, _ *isolation.Features) error {
	const name = "probe"
	self := proc.New(&funcEngine{drain: e.drain, funcs: map[string]Func{name: func(context.Context, *Call) int { return 0 }}}, e.drain)
	defer self.Close()
	sb, err := self.Create(ctx, name, isolation.Spec{Requirement: isolation.NativeTrusted, Func: name})
	if err != nil {
		return err
	}
	p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{name}}, isolation.Stdio{})
	if err != nil {
		return err
	}
	exit, err := p.Wait(ctx)
	if err == nil && !exit.Success() {
		err = fmt.Errorf("a function that returns 0 %v: %w", exit, isolation.ErrUnavailable)
	}
	return err
}

func (e *funcEngine) Check(spec isolation.Spec) error {
	if err := checkSpec(spec); err != nil {
		return err
	}
	const need = "the process engine or a tier with a boundary"
	r := spec.Resources
	switch {
	case r.MemoryBytes > 0:
		return proc.Unsupported("memory limit of a Go function", need)
	case r.CPUs > 0:
		return proc.Unsupported("cpu limit of a Go function", need)
	case !r.IO.IsZero():
		return proc.Unsupported("io limit of a Go function", need)
	case r.Pids > 0:
		return proc.Unsupported("pids limit of a Go function", need)
	case spec.Func == "":
		return proc.Unsupported("a spec without func", "a registered function's name in func")
	case e.funcs[spec.Func] == nil:
		return fmt.Errorf("function %q is not registered: %w", spec.Func, isolation.ErrNotFound)
	}
	return nil
}

func (e *funcEngine) CheckProcess(p isolation.ProcessSpec) error {
	if err := checkProcess(p); err != nil {
		return err
	}
	const need = "the process engine"
	switch {
	case p.Cwd != "":
		return proc.Unsupported("a working directory for a Go function", need)
	case p.User != "":
		return proc.Unsupported("a user for a Go function", need)
	case p.Limits.CPU > 0:
		return proc.Unsupported("cpu time limit of a Go function", need)
	case p.Limits.OpenFiles > 0:
		return proc.Unsupported("open files limit of a Go function", need)
	}
	return nil
}

func (e *funcEngine) Create(_ context.Context, _ string, spec isolation.Spec) (proc.Place, error) {
	return &funcPlace{eng: e, fn: e.funcs[spec.Func]}, nil
}

func (e *funcEngine) Close() error { return nil }

type funcPlace struct {
	eng *funcEngine
	fn  Func

	mu      sync.Mutex
	running map[*funcTask]bool
}

func (pl *funcPlace) Start(ctx context.Context, p *proc.Process) (proc.Task, error) {
	t := &funcTask{pl: pl, p: p, returned: make(chan struct{}), ended: make(chan struct{})}
	out, errs := newRing(nil), newRing(nil)
	p.Out, p.Err = p.NewStream(out, p.Stdio.Stdout), p.NewStream(errs, p.Stdio.Stderr)
	out.start = func() { go p.Out.Pump() }
	errs.start = func() { go p.Err.Pump() }
	t.in, t.out, t.err = newRing(nil), out, errs
	stdin := p.Stdio.Stdin
	t.in.start = func() {
		if stdin == nil {
			t.in.Finish()
			return
		}
		go feed(t.in, stdin)
	}
	pl.mu.Lock()
	if pl.running == nil {
		pl.running = map[*funcTask]bool{}
	}
	pl.running[t] = true
	pl.mu.Unlock()
	// The call's context is not the start's: that one bounds Exec only.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t.run, t.cancel = run, cancel
	return t, nil
}

// feed moves a caller's input into a ring until either ends.
func feed(in *ring, from io.Reader) {
	buf := proc.Bufs.Get().(*[proc.BufBytes]byte)
	defer proc.Bufs.Put(buf)
	defer in.Finish()
	for {
		n, err := from.Read(buf[:])
		if n > 0 {
			if _, werr := in.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (pl *funcPlace) Kill(context.Context) error { return nil }

// removeGrace is how long functions that were told to end are waited for: on a
// busy machine one that listens may need a while to be heard of.
const removeGrace = 2 * time.Second

func (pl *funcPlace) Remove(ctx context.Context) error {
	pl.mu.Lock()
	left := slices.Collect(maps.Keys(pl.running))
	pl.mu.Unlock()
	grace := time.NewTimer(removeGrace)
	defer grace.Stop()
	for _, t := range left {
		select {
		case <-t.returned:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-grace.C:
			pl.mu.Lock()
			defer pl.mu.Unlock()
			if n := len(pl.running); n > 0 {
				return fmt.Errorf("%d functions are still running, and a Go function cannot be stopped: %w", n, isolation.ErrUnavailable)
			}
			return nil
		}
	}
	return nil
}

type funcTask struct {
	pl           *funcPlace
	p            *proc.Process
	run          context.Context
	cancel       context.CancelFunc
	in, out, err *ring
	st           proc.Status
	returned     chan struct{} // closed when the function is gone
	ended        chan struct{} // closed when the call is to end
	once         sync.Once
}

func (t *funcTask) Begin() { go t.call(t.run) }

func (t *funcTask) call(ctx context.Context) {
	fine := false
	defer func() {
		v := recover()
		switch {
		case fine:
		case v != nil:
			// What a Go program does that panics: its status is 2 and the stack
			// goes to stderr. (A trap is a WASM module's.)
			t.st.Code, t.st.Detail = 2, oneLine(fmt.Sprintf("panic: %v", v))
			stack := debug.Stack()
			fmt.Fprintf(ringWriter{t.err}, "panic: %v\n\n%s", v, stack[:min(len(stack), maxStack)])
		default:
			t.st.Code, t.st.Detail = 2, "the function ended its goroutine (runtime.Goexit)"
		}
		t.st.Forced = !t.p.Returned()
		t.pl.mu.Lock()
		delete(t.pl.running, t)
		t.pl.mu.Unlock()
		close(t.returned)
	}()
	code := t.pl.fn(ctx, &Call{
		Args: t.p.Spec.Args, Env: t.p.Spec.Env, // ours, and nobody else's
		Stdin: ringReader{t.in}, Stdout: ringWriter{t.out}, Stderr: ringWriter{t.err},
	})
	t.st.Code = code & 0xff
	fine = true
}

// oneLine cuts s to what fits a Detail.
func oneLine(s string) string {
	for i, c := range s {
		if c == '\n' || i > 200 {
			return s[:i]
		}
	}
	return s
}

func (t *funcTask) PID() int { return 0 }

func (t *funcTask) CPU() time.Duration { return 0 }

func (t *funcTask) Signal(sig isolation.Signal) error {
	if !sig.Ends() {
		return proc.Unsupported(sig.String()+" to a Go function", "the process engine")
	}
	t.p.Stop(isolation.ReasonSignaled, sig, "")
	return nil
}

func (t *funcTask) Kill() {
	t.once.Do(func() {
		close(t.ended)
		t.cancel()
		t.in.Close()
	})
}

func (t *funcTask) Wait() proc.Status {
	defer t.in.Close()
	defer t.cancel()
	select {
	case <-t.returned:
	case <-t.ended:
		// A writer that blocks must not hold a function that was ended.
		grace := time.NewTimer(t.pl.eng.drain)
		defer grace.Stop()
		select {
		case <-t.returned:
		case <-grace.C:
		}
	}
	ended := time.Now()
	for _, r := range []struct {
		*ring
		s *proc.Stream
	}{{t.out, t.p.Out}, {t.err, t.p.Err}} {
		r.Finish()
		r.once.Do(func() { r.s.EndOfInput() })
	}
	select {
	case <-t.returned:
		t.st.Ended = ended
		return t.st
	default:
		t.pl.eng.stuck.Add(1)
		go func() {
			<-t.returned
			t.pl.eng.stuck.Add(-1)
		}()
		return proc.Status{Forced: true, Ended: ended, Detail: "still running: a Go function cannot be stopped"}
	}
}

func (t *funcTask) Settle(st *proc.Status) {
	st.Peak = -1
	select {
	case <-t.returned:
	default:
		st.Survivors = 1
	}
}
