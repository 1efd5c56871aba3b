package none

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// minCPUPoll is how closely a limit on CPU time is watched near its end.
const minCPUPoll = 2 * time.Millisecond

type process struct {
	sb        *sandbox
	id        string
	spec      isolation.ProcessSpec
	stdio     isolation.Stdio
	task      task
	began     time.Time
	startTook time.Duration

	meter    meter
	out, err *stream // set by the engine

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

// stop ends the process for a reason, unless there is one already.
func (p *process) stop(r isolation.Reason, sig isolation.Signal, detail string) {
	if p.cause.CompareAndSwap(nil, &cause{r, sig, detail}) {
		p.task.kill()
	}
}

func (p *process) ID() string { return p.id }

func (p *process) PID() int { return p.task.pid() }

func (p *process) Kill(ctx context.Context, sig isolation.Signal) error {
	err := ctx.Err()
	if err == nil && !sig.Valid() {
		err = fmt.Errorf("%v is not a signal: %w", sig, isolation.ErrInvalidArgument)
	}
	if err == nil {
		select {
		case <-p.done:
		default:
			err = p.task.signal(sig)
		}
	}
	if err != nil {
		return p.sb.d.fail("kill", p.id, "", err)
	}
	return nil
}

func (p *process) Wait(ctx context.Context) (isolation.Exit, error) {
	select {
	case <-p.done: // an Exit that is there is told also to a caller in a hurry
		return p.exit, nil
	default:
	}
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return isolation.Exit{}, p.sb.d.fail("wait", p.id, isolation.OutcomeUnknown, ctx.Err())
	}
}

// run sees the process to its end.
func (p *process) run() {
	l := p.spec.Limits
	ended := make(chan struct{})
	if l.Wall > 0 {
		t := time.AfterFunc(time.Until(p.began.Add(l.Wall)), func() {
			p.stop(isolation.ReasonTimeoutWall, 0, fmt.Sprintf("ran longer than %v", l.Wall))
		})
		defer t.Stop()
	}
	if l.CPU > 0 {
		go p.watchCPU(l.CPU, ended)
	}
	st := p.task.wait()
	wall := st.ended.Sub(p.began)
	close(ended)
	drain(p.sb.d.drain, [2]*stream{p.out, p.err})
	stdout, stderr := p.out.end(), p.err.end()
	p.task.settle(&st)

	p.exit = p.verdict(st)
	p.exit.Stdout, p.exit.Stderr = stdout, stderr
	p.exit.Survivors = st.survivors
	p.exit.Usage = isolation.Usage{
		Wall: wall, CPU: st.cpu, PeakMemoryBytes: st.peak, ReadBytes: st.read, WrittenBytes: st.written,
		Phases: isolation.Phases{Create: p.sb.createTook, Start: p.startTook, Run: wall},
	}
	p.sb.forget(p, true)
	close(p.done)
}

func (p *process) watchCPU(limit time.Duration, ended <-chan struct{}) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ended:
			return
		case <-t.C:
		}
		used := p.task.cpu()
		if used >= limit {
			p.stop(isolation.ReasonTimeoutCPU, 0, fmt.Sprintf("used more than %v of CPU time", limit))
			return
		}
		// No sooner can all cores together have used the rest.
		t.Reset(max(minCPUPoll, (limit-used)/time.Duration(runtime.NumCPU())))
	}
}

// verdict names what ended the program; see the package comment for the order.
func (p *process) verdict(st status) (e isolation.Exit) {
	l := p.spec.Limits
	e = isolation.Exit{Code: -1, Signal: st.signal, Detail: st.detail, LimitsHit: st.hits}
	if st.signal == 0 && !st.forced && !st.lost {
		e.Code = st.code
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
	case st.lost:
		e.Reason = isolation.ReasonSandboxLost
	case st.forced && c != nil:
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
	case st.oom > 0 && st.signal == isolation.SIGKILL:
		e.Reason = isolation.ReasonOOM
		detail("the kernel killed it for want of memory")
	case st.oom > 0 && st.signal == 0 && st.code != 0:
		e.Reason, e.Code = isolation.ReasonOOM, -1
		detail(fmt.Sprintf("the kernel killed a child of it for want of memory; it then exited with status %d", st.code))
	case st.signal != 0 && l.CPU > 0 && st.cpu >= l.CPU && (st.signal == isolation.SIGKILL || st.signal == sigXCPU):
		e.Reason = isolation.ReasonTimeoutCPU
		detail(fmt.Sprintf("used more than %v of CPU time", l.CPU))
	case st.signal != 0:
		e.Reason = isolation.ReasonSignaled
	default:
		e.Reason = isolation.ReasonExited
	}
	return e
}

// sigXCPU is what the kernel sends at RLIMIT_CPU.
const sigXCPU isolation.Signal = 24
