//go:build !linux

package none

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// nativeEngine runs programs with what every system has. Children are known
// by their process group where there is one; see groupSignal.
type nativeEngine struct{ cfg Config }

func newNative(c Config) (*nativeEngine, error) { return &nativeEngine{cfg: c}, nil }

func (e *nativeEngine) Features() isolation.Features {
	f := nativeFeatures()
	no := func(l isolation.Limit, why string) {
		f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: l, Reason: why})
	}
	no(isolation.LimitCPUTime, "the CPU time of a process tree is not read on "+runtime.GOOS)
	no(isolation.LimitMemory, runtime.GOOS+" has no control groups")
	no(isolation.LimitPids, runtime.GOOS+" has no control groups")
	no(isolation.LimitCPUs, runtime.GOOS+" has no control groups")
	no(isolation.LimitIO, runtime.GOOS+" has no control groups")
	no(isolation.LimitFiles, "limits cannot be set before the program runs on "+runtime.GOOS)
	f.Warnings = append(f.Warnings, portableWarnings...)
	return f
}

func (e *nativeEngine) Probe(ctx context.Context, f *isolation.Features) error {
	return probeProgram(ctx, e, isolation.Resources{}, f)
}

func (e *nativeEngine) Check(spec isolation.Spec) error {
	if err := checkSpec(spec); err != nil {
		return err
	}
	if spec.Func != "" {
		return proc.Unsupported("func", `engine "func"`)
	}
	r := spec.Resources
	for _, l := range []struct {
		asked bool
		what  string
	}{{r.MemoryBytes > 0, "memory limit"}, {r.Pids > 0, "pids limit"}, {r.CPUs > 0, "cpu limit"}, {!r.IO.IsZero(), "io limit"}} {
		if l.asked {
			return proc.Unsupported(l.what+" on "+runtime.GOOS, "Linux control groups")
		}
	}
	return nil
}

func (e *nativeEngine) CheckProcess(p isolation.ProcessSpec) error {
	if err := checkProcess(p); err != nil {
		return err
	}
	switch {
	case p.Limits.CPU > 0:
		return proc.Unsupported("cpu time limit on "+runtime.GOOS, "Linux")
	case p.Limits.OpenFiles > 0:
		return proc.Unsupported("open files limit on "+runtime.GOOS, "Linux")
	}
	return nil
}

func (e *nativeEngine) Create(context.Context, string, isolation.Spec) (proc.Place, error) {
	return &nativePlace{eng: e}, nil
}

func (e *nativeEngine) Close() error { return nil }

type nativePlace struct {
	eng *nativeEngine

	mu   sync.Mutex
	left []*nativeTask // ended, with members of their group or writers left
}

func (pl *nativePlace) Start(_ context.Context, p *proc.Process) (proc.Task, error) {
	g, err := pl.eng.cfg.resolve(p.Spec)
	if err != nil {
		return nil, err
	}
	io, err := proc.NewPipes(p)
	if err != nil {
		return nil, err
	}
	proc, err := os.StartProcess(g.path, p.Spec.Args, &os.ProcAttr{
		Dir:   g.dir,
		Env:   append([]string{}, p.Spec.Env...), // nil would inherit
		Files: []*os.File{io.Theirs[0], io.Theirs[1], io.Theirs[2]}, Sys: procAttr(g.cred),
	})
	if err != nil {
		io.Abandon(p)
		return nil, classify(fmt.Errorf("start %s: %w", g.path, err))
	}
	io.CloseTheirs()
	return &nativeTask{pl: pl, p: p, io: io, proc: proc}, nil
}

func (pl *nativePlace) Kill(context.Context) error {
	pl.mu.Lock()
	left := pl.left
	pl.left = nil
	pl.mu.Unlock()
	for _, t := range left {
		_ = groupSignal(t.proc.Pid, syscall.SIGKILL)
		t.p.Out.Close()
		t.p.Err.Close()
	}
	return nil
}

func (pl *nativePlace) Remove(ctx context.Context) error { return pl.Kill(ctx) }

type nativeTask struct {
	pl   *nativePlace
	p    *proc.Process
	io   *proc.Pipes
	proc *os.Process
}

func (t *nativeTask) Begin() { t.io.Begin(t.p) }

func (t *nativeTask) PID() int { return t.proc.Pid }

func (t *nativeTask) CPU() time.Duration { return 0 }

func (t *nativeTask) Signal(sig isolation.Signal) error {
	s, ok := hostSignal(sig)
	if !ok {
		return proc.Unsupported(sig.String()+" on "+runtime.GOOS, "Linux")
	}
	if sig == isolation.SIGKILL {
		t.p.Signaled(sig)
	}
	if err := t.proc.Signal(s); err != nil && err != os.ErrProcessDone {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	return nil
}

func (t *nativeTask) Kill() {
	_ = t.proc.Kill()
	_ = groupSignal(t.proc.Pid, syscall.SIGKILL)
}

func (t *nativeTask) Wait() proc.Status {
	ps, err := t.proc.Wait()
	ended := time.Now()
	t.io.CloseStdin()
	if err != nil {
		return proc.Status{Lost: true, Ended: ended, Peak: -1, Detail: err.Error()}
	}
	st := exitStatus(ps)
	st.Forced = st.Forced && t.p.Caused()
	st.CPU = ps.UserTime() + ps.SystemTime()
	st.Ended, st.Peak = ended, -1
	return st
}

func (t *nativeTask) Settle(st *proc.Status) {
	if groupSignal(t.proc.Pid, 0) == nil {
		st.Survivors = groupSize(t.proc.Pid)
	}
	if st.Survivors > 0 || !t.p.Out.IsGone() || !t.p.Err.IsGone() {
		t.pl.mu.Lock()
		t.pl.left = append(t.pl.left, t)
		t.pl.mu.Unlock()
	}
}
