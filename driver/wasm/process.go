package wasm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// process is one run of a module, on one worker.
type process struct {
	id     string
	sb     *sandbox
	w      *workerProcess
	stream uint32
	limits isolation.Limits
	memory uint64 // limit in bytes
	began  time.Time
	phases isolation.Phases
	cpu0   time.Duration // CPU time of the worker at the start
	ahead  time.Duration // CPU time of the instance before the start
	turn   *turn
	again  func() // has the worker prepare for the next one like this; nil: nothing

	stdout, stderr output
	stdin          input

	mu       sync.Mutex
	reason   isolation.Reason // guarded by mu; why the host ended it, "" if it did not
	signal   isolation.Signal // guarded by mu
	ended    bool             // guarded by mu: the outcome is fixed
	written  int64            // guarded by mu; both streams
	wall     *time.Timer      // guarded by mu
	cpuTimer *time.Timer      // guarded by mu

	done chan struct{}
	exit isolation.Exit // set before done is closed
}

var _ isolation.Process = (*process)(nil)

func (p *process) ID() string { return p.id }

func (p *process) PID() int { return p.w.child.pid }

// Kill ends the process: a module has no signals, so those that would end a
// program do, and others are refused.
func (p *process) Kill(_ context.Context, sig isolation.Signal) error {
	if !sig.Valid() {
		return fmt.Errorf("kill %s: signal %d: %w", p.id, int(sig), isolation.ErrInvalidArgument)
	}
	if !sig.Ends() {
		return &isolation.UnsupportedError{Feature: sig.String() + " to a WebAssembly module", Need: "a tier with signals"}
	}
	p.end(isolation.ReasonSignaled, sig)
	return nil
}

func (p *process) Wait(ctx context.Context) (isolation.Exit, error) {
	select {
	case <-p.done:
		return p.exit, nil
	default:
	}
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return isolation.Exit{}, &isolation.Error{Op: "wait", Driver: p.sb.d.Name(), ID: p.id, Outcome: isolation.OutcomeUnknown, Err: context.Cause(ctx)}
	}
}

// end has the host end the process. The first cause counts.
func (p *process) end(r isolation.Reason, sig isolation.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.reason != "" {
		return
	}
	p.reason, p.signal = r, sig
	// The reader of the worker sees the end of the connection and does the
	// rest.
	p.w.child.kill()
}

// startTimers begins the limits on time.
func (p *process) startTimers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	if p.limits.Wall > 0 {
		p.wall = time.AfterFunc(p.limits.Wall, func() { p.end(isolation.ReasonTimeoutWall, 0) })
	}
	if p.limits.CPU > 0 {
		p.cpuTimer = time.AfterFunc(p.limits.CPU, p.checkCPU)
	}
}

// minCPUCheck keeps a process that is nearly at its limit from being looked at
// in a busy loop.
const minCPUCheck = 2 * time.Millisecond

// checkCPU ends the process if its CPU time is used up, and else looks again
// when it could be: a worker has one computing thread, so CPU time passes no
// faster than wall time.
func (p *process) checkCPU() {
	used, ok := p.w.child.cpuTime()
	left := p.limits.CPU - (used - p.cpu0)
	if ok && left <= 0 {
		p.end(isolation.ReasonTimeoutCPU, 0)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.cpuTimer = time.AfterFunc(max(left, minCPUCheck), p.checkCPU)
	}
}

// output takes a piece of stdout or stderr.
func (p *process) output(o *output, b []byte) error {
	keep := len(b)
	if limit := p.limits.OutputBytes; limit > 0 {
		p.mu.Lock()
		keep = int(max(0, min(int64(keep), limit-p.written)))
		p.written += int64(len(b))
		p.mu.Unlock()
		if keep < len(b) {
			p.end(isolation.ReasonOutputLimit, 0)
		}
	}
	if !o.push(b, keep) {
		return fmt.Errorf("%w: output without credit", wire.ErrProtocol)
	}
	return nil
}

func (p *process) grant(of wire.Type) func(int) {
	return func(n int) {
		m := wire.WindowMessage{Of: of, Bytes: uint64(n)}
		// An error is the worker's end, which its reader reports.
		_ = p.w.send(wire.Window, p.stream, m.Append(nil))
	}
}

// exited is called by the worker's reader when EXIT came.
func (p *process) exited(m *wire.ExitMessage) {
	now := time.Now()
	reason, sig, first := p.settle()
	if !first {
		return
	}
	e := isolation.Exit{Code: -1, Reason: reason, Signal: sig}
	if reason == "" {
		p.judge(&e, m)
		p.sb.d.pool.put(p.w)
		if p.again != nil {
			p.again()
		}
	} else {
		// It ended by itself just after the host had decided; its worker was
		// killed.
		e.Detail = p.describe(reason)
	}
	e.Usage.CPU = max(0, time.Duration(min(m.CPU, 1<<62))-p.ahead)
	e.Usage.PeakMemoryBytes = int64(min(m.PeakMemory, 1<<62))
	e.Usage.Fuel = m.Fuel
	e.Usage.ReadBytes, e.Usage.WrittenBytes = int64(min(m.ReadBytes, 1<<62)), int64(min(m.WrittenBytes, 1<<62))
	p.finish(e, now)
}

// judge says how a module ended that the host did not end.
func (p *process) judge(e *isolation.Exit, m *wire.ExitMessage) {
	e.Reason = isolation.ReasonExited
	failed := true
	switch m.Cause {
	case wire.CauseExited:
		e.Code = int(uint32(m.Code))
		failed = e.Code != 0
	case wire.CauseTrap:
		e.Reason, e.Detail = isolation.ReasonTrap, m.Detail
	case wire.CauseFuel:
		e.Reason = isolation.ReasonFuelExhausted
		e.Detail = fmt.Sprintf("used all of %d units", p.limits.Fuel)
	case wire.CauseSignaled, wire.CauseFailed:
		e.Reason, e.Detail = isolation.ReasonSandboxLost, "engine: "+m.Detail
	}
	hit := func(l isolation.Limit, n uint64, value uint64) {
		if n > 0 {
			e.LimitsHit = append(e.LimitsHit, isolation.LimitHit{Limit: l, Count: int64(min(n, 1<<62)), Value: int64(value)})
		}
	}
	hit(isolation.LimitMemory, m.MemoryHits, p.memory)
	hit(isolation.LimitDisk, m.DiskHits, uint64(p.sb.spec.Resources.DiskBytes))
	hit(isolation.LimitFiles, m.FileHits, uint64(p.limits.OpenFiles))
	hit(isolation.LimitTable, m.TableHits, 0)
	hit(isolation.LimitStack, m.StackHits, 0)
	if m.MemoryHits > 0 && failed && m.Cause != wire.CauseFuel {
		e.Reason = isolation.ReasonOOM
		e.Detail = fmt.Sprintf("the limit of %d bytes refused it memory, and it failed", p.memory)
		if m.Detail != "" {
			e.Detail += ": " + m.Detail
		}
	}
}

// lost is called by the worker's reader when the worker is gone.
func (p *process) lost(err error, end childEnd) {
	now := time.Now()
	reason, sig, first := p.settle()
	if !first {
		return
	}
	e := isolation.Exit{Code: -1, Reason: reason, Signal: sig, Usage: isolation.Usage{PeakMemoryBytes: -1}}
	switch {
	case reason != "":
		e.Detail = p.describe(reason)
	case end.memoryLimit:
		e.Reason = isolation.ReasonOOM
		e.Detail = "the worker's control group ran out of memory"
		e.LimitsHit = []isolation.LimitHit{{Limit: isolation.LimitMemory, Count: 1, Value: int64(p.memory)}}
	default:
		e.Reason = isolation.ReasonSandboxLost
		e.Detail = fmt.Sprintf("worker %d: %v; %v", p.w.child.pid, end, err)
	}
	e.Usage.CPU = max(0, end.cpu-p.cpu0)
	p.finish(e, now)
}

func (p *process) describe(r isolation.Reason) string {
	switch r {
	case isolation.ReasonTimeoutWall:
		return fmt.Sprintf("ran longer than %v", p.limits.Wall)
	case isolation.ReasonTimeoutCPU:
		return fmt.Sprintf("used more than %v of CPU time", p.limits.CPU)
	case isolation.ReasonOutputLimit:
		return fmt.Sprintf("wrote more than %d bytes", p.limits.OutputBytes)
	}
	return ""
}

// settle fixes the outcome: what the host does from now on comes too late. It
// returns why the host ended the process, if it did, and whether this call was
// the one that settled it.
func (p *process) settle() (isolation.Reason, isolation.Signal, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return "", 0, false
	}
	p.ended = true
	if p.wall != nil {
		p.wall.Stop()
	}
	if p.cpuTimer != nil {
		p.cpuTimer.Stop()
	}
	p.turn.end()
	return p.reason, p.signal, true
}

// finish delivers the rest of the output and publishes the exit.
func (p *process) finish(e isolation.Exit, end time.Time) {
	p.stdin.end()
	limit := func(o isolation.Reason, l isolation.Limit, v int64) {
		if e.Reason == o {
			e.LimitsHit = append(e.LimitsHit, isolation.LimitHit{Limit: l, Count: 1, Value: v})
		}
	}
	limit(isolation.ReasonTimeoutWall, isolation.LimitWall, int64(p.limits.Wall))
	limit(isolation.ReasonTimeoutCPU, isolation.LimitCPUTime, int64(p.limits.CPU))
	limit(isolation.ReasonOutputLimit, isolation.LimitOutput, p.limits.OutputBytes)
	limit(isolation.ReasonFuelExhausted, isolation.LimitFuel, int64(min(p.limits.Fuel, 1<<62)))
	complete := func() {
		e.Stdout, e.Stderr = p.stdout.finish(), p.stderr.finish()
		e.Usage.Wall = end.Sub(p.began)
		e.Usage.Phases = p.phases
		e.Usage.Phases.Run = e.Usage.Wall
		p.exit = e
		p.sb.ended(p)
		close(p.done)
	}
	// The worker's reader must not wait for the caller's writers: the worker
	// may be somebody else's by now.
	if p.stdout.settled() && p.stderr.settled() {
		complete()
		return
	}
	go complete()
}
