package proc

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// minCPUPoll is how closely a limit on CPU time is watched near its end.
const minCPUPoll = 2 * time.Millisecond

// Process is a program of a sandbox. It implements [isolation.Process].
type Process struct {
	sb        *sandbox
	id        string
	Spec      isolation.ProcessSpec
	Stdio     isolation.Stdio
	task      Task
	began     time.Time
	startTook time.Duration

	wall     wall
	meter    meter
	Out, Err *Stream         // set by the engine
	held     [2]*heldOutput  // behind them, in a detached sandbox
	fed      atomic.Bool     // somebody gives input, or did on this side
	begun    bool            // it can be attached to; guarded by the sandbox's mu
	was      *isolation.Exit // how it ended, before this side was there; nil: it had not
	left     bool            // it goes on without this side; set before done is closed

	cause atomic.Pointer[cause]
	done  chan struct{}
	exit  isolation.Exit // set before done is closed
}

// cause is why the driver ends a process. The first one counts.
type cause struct {
	reason isolation.Reason
	signal isolation.Signal
	detail string
}

// Stop ends the process for a reason, unless there is one already.
func (p *Process) Stop(r isolation.Reason, sig isolation.Signal, detail string) {
	if p.cause.CompareAndSwap(nil, &cause{r, sig, detail}) {
		p.task.Kill()
	}
}

// NewStream makes one of p's streams, which are counted together.
func (p *Process) NewStream(src Source, w io.Writer) *Stream {
	return &Stream{src: src, w: w, meter: &p.meter, done: make(chan struct{}), gone: make(chan struct{})}
}

// Signaled notes a signal that somebody sent and that ends the process. It
// competes with the driver's own causes: the first one counts.
func (p *Process) Signaled(sig isolation.Signal) {
	p.cause.CompareAndSwap(nil, &cause{reason: isolation.ReasonSignaled, signal: sig})
}

// Caused reports whether there is a cause by now that ends the process.
func (p *Process) Caused() bool { return p.cause.Load() != nil }

// Returned notes that the program ended by itself, and reports whether that
// came before any cause.
func (p *Process) Returned() bool { return p.cause.CompareAndSwap(nil, &cause{}) }

func (p *Process) ID() string { return p.id }

func (p *Process) PID() int { return p.task.PID() }

func (p *Process) Kill(ctx context.Context, sig isolation.Signal) error {
	err := ctx.Err()
	if err == nil && !sig.Valid() {
		err = fmt.Errorf("%v is not a signal: %w", sig, isolation.ErrInvalidArgument)
	}
	if err == nil {
		select {
		case <-p.done:
		default:
			err = p.task.Signal(sig)
		}
	}
	if err != nil {
		return p.sb.d.fail("kill", p.id, "", err)
	}
	return nil
}

func (p *Process) Wait(ctx context.Context) (isolation.Exit, error) {
	select {
	case <-p.done: // an Exit that is there is told also to a caller in a hurry
		return p.result()
	default:
	}
	select {
	case <-p.done:
		return p.result()
	case <-ctx.Done():
		return isolation.Exit{}, p.sb.d.fail("wait", p.id, isolation.OutcomeUnknown, ctx.Err())
	}
}

func (p *Process) result() (isolation.Exit, error) {
	if p.left {
		return isolation.Exit{}, p.sb.d.fail("wait", p.id, isolation.OutcomeUnknown, errLeft)
	}
	return p.exit, nil
}

// run sees the process to its end. One that had ended when this side found it needs
// no watch.
func (p *Process) run(watch bool) {
	ended := make(chan struct{})
	if l := p.Spec.Limits; l.CPU > 0 && watch {
		go p.watchCPU(l.CPU, ended)
	}
	st := p.task.Wait()
	p.wall.end()
	wall := st.Ended.Sub(p.began)
	close(ended)
	p.left = st.Lost && p.sb.wasLeft()
	drain(p.sb.d.drain, [2]*Stream{p.Out, p.Err})
	stdout, stderr := p.Out.end(), p.Err.end()
	p.endHeld()
	p.task.Settle(&st)

	if p.sb.killed.Load() && (st.Signal == isolation.SIGKILL || st.Lost || stdout.Cut || stderr.Cut) {
		// What ended it, or kept its output from coming, was the deletion, whose
		// kill of all may come before the one of this program.
		p.cause.CompareAndSwap(nil, &cause{reason: isolation.ReasonCanceled, detail: deletedDetail})
		if p.cause.Load().reason != "" {
			st.Signal, st.Forced, st.Lost = isolation.SIGKILL, true, false
		}
	}
	p.exit = p.verdict(st)
	p.exit.Stdout, p.exit.Stderr = stdout, stderr
	p.exit.Survivors = st.Survivors
	p.exit.Usage = isolation.Usage{
		Wall: wall, CPU: st.CPU, PeakMemoryBytes: st.Peak, ReadBytes: st.Read, WrittenBytes: st.Written,
		Phases: isolation.Phases{Create: p.sb.createTook, Start: p.startTook, Run: wall},
	}
	if p.was != nil {
		p.exit = *p.was
	}
	p.sb.forget(p, true)
	close(p.done)
}

func (p *Process) wallOver() {
	p.Stop(isolation.ReasonTimeoutWall, 0, fmt.Sprintf("ran longer than %v", p.Spec.Limits.Wall))
}

func (p *Process) watchCPU(limit time.Duration, ended <-chan struct{}) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ended:
			return
		case <-t.C:
		}
		used := p.task.CPU()
		if used >= limit {
			p.Stop(isolation.ReasonTimeoutCPU, 0, fmt.Sprintf("used more than %v of CPU time", limit))
			return
		}
		// No sooner can all cores together have used the rest.
		t.Reset(max(minCPUPoll, (limit-used)/time.Duration(runtime.NumCPU())))
	}
}

// verdict names what ended the program; see the package comment for the order.
func (p *Process) verdict(st Status) (e isolation.Exit) {
	l := p.Spec.Limits
	e = isolation.Exit{Code: -1, Signal: st.Signal, Detail: st.Detail, LimitsHit: st.Hits}
	if st.Signal == 0 && !st.Forced && !st.Lost {
		e.Code = st.Code
	}
	detail := func(s string) {
		if e.Detail == "" {
			e.Detail = s
		} else {
			e.Detail = s + "; " + e.Detail
		}
	}
	hit := func(l isolation.Limit, value int64) {
		e.LimitsHit = append(e.LimitsHit, isolation.LimitHit{Limit: l, Count: 1, Value: value})
	}
	c := p.cause.Load()
	defer func() {
		switch e.Reason {
		case isolation.ReasonTimeoutWall:
			hit(isolation.LimitWall, int64(l.Wall))
		case isolation.ReasonTimeoutCPU:
			hit(isolation.LimitCPUTime, int64(l.CPU))
		}
		if p.meter.exceeded() {
			hit(isolation.LimitOutput, l.OutputBytes)
		}
	}()
	switch {
	case st.Lost:
		e.Reason = isolation.ReasonSandboxLost
	case st.Forced && c != nil:
		e.Reason = c.reason
		if c.signal != 0 {
			e.Signal = c.signal
		}
		if c.detail != "" {
			detail(c.detail)
		}
	case p.meter.exceeded():
		e.Reason = isolation.ReasonOutputLimit
		detail(fmt.Sprintf("more than %d bytes of output", l.OutputBytes))
	case st.OOM > 0 && st.Signal == isolation.SIGKILL:
		e.Reason = isolation.ReasonOOM
		detail("the kernel killed it for want of memory")
	case st.OOM > 0 && st.Signal == 0 && st.Code != 0:
		e.Reason, e.Code = isolation.ReasonOOM, -1
		detail(fmt.Sprintf("the kernel killed a child of it for want of memory; it then exited with status %d", st.Code))
	case st.Signal != 0 && l.CPU > 0 && st.CPU >= l.CPU && (st.Signal == isolation.SIGKILL || st.Signal == sigXCPU):
		e.Reason = isolation.ReasonTimeoutCPU
		detail(fmt.Sprintf("used more than %v of CPU time", l.CPU))
	case st.Signal != 0:
		e.Reason = isolation.ReasonSignaled
	default:
		e.Reason = isolation.ReasonExited
	}
	return e
}

// sigXCPU is what the kernel sends at RLIMIT_CPU.
const sigXCPU isolation.Signal = 24
