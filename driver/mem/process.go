package mem

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// process is one call of a Program, which runs in a goroutine of its own.
type process struct {
	s      *sandbox
	id     string
	spec   isolation.ProcessSpec
	stdin  *input
	stdout *stream
	stderr *stream
	sinks  [2]*sink // the caller's

	ctx    context.Context // ends when the program must
	cancel context.CancelFunc
	done   chan struct{}
	exit   isolation.Exit // set before done is closed

	mu       sync.Mutex
	reason   isolation.Reason          // guarded by mu; empty while it runs
	code     int                       // guarded by mu
	signal   isolation.Signal          // guarded by mu
	detail   string                    // guarded by mu
	ignored  map[isolation.Signal]bool // guarded by mu
	hits     []isolation.LimitHit      // guarded by mu
	refused  bool                      // guarded by mu; memory was refused
	began    time.Time                 // guarded by mu
	over     time.Time                 // guarded by mu; when reason was set
	starting time.Duration             // guarded by mu
	cpu      time.Duration             // guarded by mu
	fuel     uint64                    // guarded by mu
	memory   int64                     // guarded by mu
	peak     int64                     // guarded by mu
	written  int64                     // guarded by mu; stdout and stderr
	disk     int64                     // guarded by mu
	files    int64                     // guarded by mu
	children int                       // guarded by mu; tasks that it started and that still run
	wall     *time.Timer               // guarded by mu; nil: no limit, or paused
	wallLeft time.Duration             // guarded by mu; of the limit, when wallFrom
	wallFrom time.Time                 // guarded by mu
	alone    time.Time                 // guarded by mu; since when nobody has it
	resume   chan struct{}             // guarded by mu; nil: not paused; closed by Resume
}

var _ isolation.Process = (*process)(nil)

// newProcess is called with s.mu held.
func newProcess(s *sandbox, ps isolation.ProcessSpec, stdio isolation.Stdio) *process {
	p := &process{
		s: s, id: ps.ExecID, spec: ps, code: -1,
		stdin: newInput(stdio.Stdin), stdout: newStream(s.driver().retain), stderr: newStream(s.driver().retain),
		done: make(chan struct{}), ignored: map[isolation.Signal]bool{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.sinks[0], _, _, _ = p.stdout.attach(stdio.Stdout, 0)
	p.sinks[1], _, _, _ = p.stderr.attach(stdio.Stderr, 0)
	return p
}

// ID implements isolation.Process.
func (p *process) ID() string { return p.id }

// PID implements isolation.Process: there is none.
func (p *process) PID() int { return 0 }

// start runs the program. It is called with s.mu held.
func (p *process) start(program Program, asked time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.began = time.Now()
	p.starting = p.began.Sub(asked)
	p.wallLeft = p.spec.Limits.Wall
	p.runWallLocked()
	returned := make(chan struct{})
	d := p.s.driver()
	d.running.Add(1)
	go p.run(d, program, returned)
	go p.settle(returned)
}

// run calls the program; every way out of it leads through the deferred call.
func (p *process) run(d *Driver, program Program, returned chan<- struct{}) {
	code, ok := 0, false
	defer func() {
		// A call of Proc ends the goroutine once the outcome is fixed; then
		// this does nothing.
		if r := recover(); r != nil {
			p.end(isolation.ReasonTrap, 0, fmt.Sprintf("panic: %v", r))
		} else if !ok {
			p.end(isolation.ReasonTrap, 0, "the goroutine ended itself")
		} else {
			p.exited(code)
		}
		d.running.Add(-1)
		p.s.taskEnded()
		close(returned)
	}()
	code = program(&Proc{p: p})
	ok = true
}

// exited is the program's own end.
func (p *process) exited(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return
	}
	p.code = code
	if p.refused && code != 0 {
		p.endLocked(isolation.ReasonOOM, 0, "memory was refused, and the program failed")
		return
	}
	p.endLocked(isolation.ReasonExited, 0, "")
}

// end fixes the outcome, unless it is fixed. The first cause counts.
func (p *process) end(r isolation.Reason, sig isolation.Signal, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason == "" {
		p.endLocked(r, sig, detail)
	}
}

func (p *process) endLocked(r isolation.Reason, sig isolation.Signal, detail string) {
	p.reason, p.signal, p.over = r, sig, time.Now()
	p.detail, _, _ = strings.Cut(detail, "\n") // one line, also of a panic
	p.stopWallLocked()
	p.cancel()
}

// abandonAfter is how long a program that must end may go on without calling
// its Proc. A goroutine can't be killed: it is left to itself then.
const abandonAfter = time.Second

// settle waits for the end, delivers what is left and publishes the Exit.
func (p *process) settle(returned <-chan struct{}) {
	<-p.ctx.Done()
	timer := time.NewTimer(abandonAfter)
	defer timer.Stop()
	select {
	case <-returned:
	case <-timer.C:
		p.mu.Lock()
		p.detail = strings.TrimPrefix(p.detail+"; the program does not listen and still runs", "; ")
		p.mu.Unlock()
	}
	p.stdin.close()
	p.stdout.end()
	p.stderr.end()
	var dropped [2]int64
	var wg sync.WaitGroup
	for i, k := range p.sinks {
		wg.Go(func() { dropped[i] = k.drain() })
	}
	wg.Wait()

	p.mu.Lock()
	held := p.memory
	u := p.usageLocked()
	u.Phases.Teardown = time.Since(p.over)
	p.exit = isolation.Exit{
		Code: p.code, Signal: p.signal, Reason: p.reason, Detail: p.detail, LimitsHit: p.hits, Usage: u,
		Stdout:    isolation.Output{Bytes: p.stdout.total(), Dropped: dropped[0]},
		Stderr:    isolation.Output{Bytes: p.stderr.total(), Dropped: dropped[1]},
		Survivors: p.children,
	}
	p.mu.Unlock()
	p.s.take(&p.s.memory, -held, 0)
	p.s.settled(p)
}

func (p *process) usageLocked() isolation.Usage {
	end := p.over
	if end.IsZero() {
		end = time.Now()
	}
	u := isolation.Usage{Wall: end.Sub(p.began), CPU: p.cpu, PeakMemoryBytes: p.peak, WrittenBytes: p.disk}
	if p.spec.Limits.Fuel > 0 {
		u.Fuel = min(p.fuel, p.spec.Limits.Fuel)
	}
	u.Phases = isolation.Phases{Create: p.s.making, Start: p.starting, Run: u.Wall}
	return u
}

// Kill implements isolation.Process.
func (p *process) Kill(_ context.Context, sig isolation.Signal) error {
	if !sig.Valid() {
		return fmt.Errorf("kill %s: signal %d: %w", p.id, int(sig), isolation.ErrInvalidArgument)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.reason != "" || p.ignored[sig]:
		return nil
	case !sig.Ends():
		return &isolation.UnsupportedError{Feature: sig.String()}
	}
	p.endLocked(isolation.ReasonSignaled, sig, "")
	return nil
}

// Wait implements isolation.Process.
func (p *process) Wait(ctx context.Context) (isolation.Exit, error) {
	if err := p.ready(ctx); err != nil {
		return isolation.Exit{}, &isolation.Error{Op: "wait", Driver: p.s.driver().name, ID: p.id, Outcome: isolation.OutcomeUnknown, Err: err}
	}
	return p.result(), nil
}

// result is a copy that the caller may change.
func (p *process) result() isolation.Exit {
	e := p.exit
	e.LimitsHit = append([]isolation.LimitHit(nil), e.LimitsHit...)
	return e
}

func (p *process) ready(ctx context.Context) error {
	select {
	case <-p.done: // first: an ended process is known also to a late ctx
	default:
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if hook := p.s.driver().faults.Load().Wait; hook != nil {
		return hook(ctx, p.id)
	}
	return nil
}

func (p *process) runWallLocked() {
	if p.wallLeft > 0 && p.reason == "" {
		p.wallFrom = time.Now()
		p.wall = time.AfterFunc(p.wallLeft, p.wallOver)
	}
}

func (p *process) stopWallLocked() {
	if p.wall != nil {
		p.wall.Stop()
		p.wall = nil
		// At least something is left: 0 would be no limit.
		p.wallLeft = max(1, p.wallLeft-time.Since(p.wallFrom))
	}
}

func (p *process) wallOver() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wall == nil || p.reason != "" {
		return // paused or over at the same moment
	}
	p.hitLocked(isolation.LimitWall, int64(p.spec.Limits.Wall))
	p.endLocked(isolation.ReasonTimeoutWall, 0, fmt.Sprintf("wall time limit of %v", p.spec.Limits.Wall))
}

// hitLocked notes that a limit was run into.
func (p *process) hitLocked(l isolation.Limit, value int64) {
	for i := range p.hits {
		if p.hits[i].Limit == l {
			p.hits[i].Count++
			return
		}
	}
	p.hits = append(p.hits, isolation.LimitHit{Limit: l, Count: 1, Value: value})
}
