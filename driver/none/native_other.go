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
)

// nativeEngine runs programs with what every system has. Children are known
// by their process group where there is one; see groupSignal.
type nativeEngine struct{ cfg Config }

func newNative(c Config) (*nativeEngine, error) { return &nativeEngine{cfg: c}, nil }

func (e *nativeEngine) features() isolation.Features {
	f := nativeFeatures()
	no := func(l isolation.Limit, why string) {
		f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: l, Reason: why})
	}
	no(isolation.LimitCPUTime, "the CPU time of a process tree is not read on "+runtime.GOOS)
	no(isolation.LimitMemory, runtime.GOOS+" has no control groups")
	no(isolation.LimitPids, runtime.GOOS+" has no control groups")
	no(isolation.LimitCPUs, runtime.GOOS+" has no control groups")
	no(isolation.LimitFiles, "limits cannot be set before the program runs on "+runtime.GOOS)
	f.Warnings = append(f.Warnings, portableWarnings...)
	return f
}

func (e *nativeEngine) probe(ctx context.Context, f *isolation.Features) error {
	return probeProgram(ctx, e, isolation.Resources{}, f)
}

func (e *nativeEngine) check(spec isolation.Spec) error {
	if spec.Func != "" {
		return unsupported("func", `engine "func"`)
	}
	r := spec.Resources
	for _, l := range []struct {
		asked bool
		what  string
	}{{r.MemoryBytes > 0, "memory limit"}, {r.Pids > 0, "pids limit"}, {r.CPUs > 0, "cpu limit"}} {
		if l.asked {
			return unsupported(l.what+" on "+runtime.GOOS, "Linux control groups")
		}
	}
	return nil
}

func (e *nativeEngine) checkProcess(p isolation.ProcessSpec) error {
	switch {
	case p.Limits.CPU > 0:
		return unsupported("cpu time limit on "+runtime.GOOS, "Linux")
	case p.Limits.OpenFiles > 0:
		return unsupported("open files limit on "+runtime.GOOS, "Linux")
	}
	return nil
}

func (e *nativeEngine) create(context.Context, string, isolation.Spec) (place, error) {
	return &nativePlace{eng: e}, nil
}

func (e *nativeEngine) close() error { return nil }

type nativePlace struct {
	eng *nativeEngine

	mu   sync.Mutex
	left []*nativeTask // ended, with members of their group or writers left
}

func (pl *nativePlace) start(_ context.Context, p *process) (task, error) {
	g, err := pl.eng.cfg.resolve(p.spec)
	if err != nil {
		return nil, err
	}
	io, err := newPipes(p)
	if err != nil {
		return nil, err
	}
	proc, err := os.StartProcess(g.path, p.spec.Args, &os.ProcAttr{
		Dir:   g.dir,
		Env:   append([]string{}, p.spec.Env...), // nil would inherit
		Files: []*os.File{io.theirs[0], io.theirs[1], io.theirs[2]}, Sys: procAttr(g.cred),
	})
	if err != nil {
		io.abandon(p)
		return nil, classify(fmt.Errorf("start %s: %w", g.path, err))
	}
	io.closeTheirs()
	return &nativeTask{pl: pl, p: p, io: io, proc: proc}, nil
}

func (pl *nativePlace) kill(context.Context) error {
	pl.mu.Lock()
	left := pl.left
	pl.left = nil
	pl.mu.Unlock()
	for _, t := range left {
		_ = groupSignal(t.proc.Pid, syscall.SIGKILL)
		t.p.out.close()
		t.p.err.close()
	}
	return nil
}

func (pl *nativePlace) remove(ctx context.Context) error { return pl.kill(ctx) }

type nativeTask struct {
	pl   *nativePlace
	p    *process
	io   *pipes
	proc *os.Process
}

func (t *nativeTask) begin() { t.io.begin(t.p) }

func (t *nativeTask) pid() int { return t.proc.Pid }

func (t *nativeTask) cpu() time.Duration { return 0 }

func (t *nativeTask) signal(sig isolation.Signal) error {
	s, ok := hostSignal(sig)
	if !ok {
		return unsupported(sig.String()+" on "+runtime.GOOS, "Linux")
	}
	if sig == isolation.SIGKILL {
		// It competes with the driver's own causes: the first one counts.
		t.p.cause.CompareAndSwap(nil, &cause{reason: isolation.ReasonSignaled, signal: sig})
	}
	if err := t.proc.Signal(s); err != nil && err != os.ErrProcessDone {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	return nil
}

func (t *nativeTask) kill() {
	_ = t.proc.Kill()
	_ = groupSignal(t.proc.Pid, syscall.SIGKILL)
}

func (t *nativeTask) wait() status {
	ps, err := t.proc.Wait()
	ended := time.Now()
	t.io.closeStdin()
	if err != nil {
		return status{lost: true, ended: ended, peak: -1, detail: err.Error()}
	}
	st := exitStatus(ps)
	st.forced = st.forced && t.p.cause.Load() != nil
	st.cpu = ps.UserTime() + ps.SystemTime()
	st.ended, st.peak = ended, -1
	return st
}

func (t *nativeTask) settle(st *status) {
	if groupSignal(t.proc.Pid, 0) == nil {
		st.survivors = groupSize(t.proc.Pid)
	}
	if st.survivors > 0 || !t.p.out.isGone() || !t.p.err.isGone() {
		t.pl.mu.Lock()
		t.pl.left = append(t.pl.left, t)
		t.pl.mu.Unlock()
	}
}

func newPipe(weRead bool) (ours, theirs *os.File, err error) {
	r, w, err := os.Pipe()
	if weRead {
		return r, w, err
	}
	return w, r, err
}
