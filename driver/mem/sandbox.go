package mem

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// maxEnded is how many ended processes a sandbox remembers for Attach.
const maxEnded = 64

// sandbox is a set of processes that share limits. What callers hold is
// sandbox.wear: the sandbox with its abilities around it.
type sandbox struct {
	holder  atomic.Pointer[Driver] // the last one
	letGone atomic.Bool            // nobody has it
	host    *Host
	id      string
	spec    isolation.Spec
	created time.Time
	making  time.Duration // what Create took
	files   *tree

	// mu comes before the mu of a process where both are held.
	mu      sync.Mutex
	ctx     context.Context     // guarded by mu; ends when the sandbox does, or is reset
	cancel  context.CancelFunc  // guarded by mu; ends ctx
	changed chan struct{}       // guarded by mu; closed and replaced when anything changes
	live    map[string]*process // guarded by mu
	ended   []*process          // guarded by mu; oldest first
	next    int                 // guarded by mu
	used    isolation.Usage     // guarded by mu; by ended processes
	tasks   int64               // guarded by mu; goroutines of programs
	memory  int64               // guarded by mu; of live processes
	disk    int64               // guarded by mu
	resets  int                 // guarded by mu; those that go on
	paused  bool                // guarded by mu
	lost    bool                // guarded by mu
	deleted bool                // guarded by mu; Delete was called
	gone    bool                // guarded by mu; Delete is through
	ports   map[uint16]string   // guarded by mu; what is listened on, by whom
}

var _ isolation.Sandbox = (*sandbox)(nil)

func newSandbox(d *Driver, id string, spec isolation.Spec, began time.Time) *sandbox {
	s := &sandbox{
		host: d.host, id: id, spec: spec, created: time.Now(), making: time.Since(began),
		changed: make(chan struct{}), live: map[string]*process{}, files: newTree(), ports: map[uint16]string{},
	}
	s.holder.Store(d)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *sandbox) driver() *Driver { return s.holder.Load() }

func (s *sandbox) changeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sandbox) fail(op string, o isolation.Outcome, err error) error {
	return &isolation.Error{Op: op, Driver: s.driver().name, ID: s.id, Outcome: o, Err: err}
}

// ID implements isolation.Sandbox.
func (s *sandbox) ID() string { return s.id }

// State implements isolation.Sandbox.
func (s *sandbox) State(context.Context) (isolation.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return isolation.State{}, s.fail("state", "", isolation.ErrNotFound)
	}
	st := isolation.State{ID: s.id, Status: isolation.StatusCreated, Created: s.created}
	for id := range s.live {
		st.Execs = append(st.Execs, id)
	}
	slices.Sort(st.Execs)
	switch {
	case s.deleted || s.lost:
		st.Status = isolation.StatusStopped
	case s.paused:
		st.Status = isolation.StatusPaused
	case len(s.live) > 0:
		st.Status = isolation.StatusRunning
	}
	return st, nil
}

// Exec implements isolation.Sandbox.
func (s *sandbox) Exec(ctx context.Context, ps isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	p, err := s.exec(ctx, ps, stdio)
	if err != nil {
		return nil, s.fail("exec", isolation.NotStarted, err)
	}
	return s.borrowed(p), nil
}

func (s *sandbox) exec(ctx context.Context, ps isolation.ProcessSpec, stdio isolation.Stdio) (*process, error) {
	asked := time.Now()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := ps.Validate(); err != nil {
		return nil, err
	}
	if err := s.driver().checkUsed(s.spec, ps); err != nil {
		return nil, err
	}
	if hook := s.driver().faults.Load().Exec; hook != nil {
		if err := hook(ctx, s.id, ps); err != nil {
			return nil, err
		}
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	name := ps.Args[0]
	if s.spec.Func != "" {
		name = s.spec.Func
	}
	program := s.driver().programs[name]
	if program == nil {
		return nil, fmt.Errorf("program %q is not there: %w", name, isolation.ErrNotFound)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	switch max := s.spec.Resources.Pids; {
	case s.deleted:
		return nil, isolation.ErrNotFound
	case s.lost:
		return nil, fmt.Errorf("sandbox is lost: %w", isolation.ErrFailedPrecondition)
	case s.paused:
		return nil, fmt.Errorf("sandbox is paused: %w", isolation.ErrFailedPrecondition)
	case s.resets > 0:
		return nil, fmt.Errorf("sandbox is being reset: %w", isolation.ErrFailedPrecondition)
	case max > 0 && s.tasks >= max:
		return nil, fmt.Errorf("%d tasks run, at most %d may: %w", s.tasks, max, isolation.ErrResourceExhausted)
	}
	if ps.ExecID == "" {
		for ps.ExecID == "" || s.findLocked(ps.ExecID) != nil {
			s.next++
			ps.ExecID = "exec-" + strconv.Itoa(s.next)
		}
	} else if s.findLocked(ps.ExecID) != nil {
		return nil, fmt.Errorf("exec id %s: %w", ps.ExecID, isolation.ErrAlreadyExists)
	}
	p := newProcess(s, ps, stdio)
	s.live[p.id] = p
	s.tasks++
	p.start(program, asked)
	return p, nil
}

func (s *sandbox) findLocked(execID string) *process {
	if p := s.live[execID]; p != nil {
		return p
	}
	for _, p := range s.ended {
		if p.id == execID {
			return p
		}
	}
	return nil
}

// settled takes an ended process out of the live ones and wakes its waiters,
// in one step: who waited for it does not find it running, and who deleted the
// sandbox finds it ended.
func (s *sandbox) settled(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, p.id)
	s.ended = append(s.ended, p)
	if len(s.ended) > maxEnded {
		s.ended = slices.Delete(s.ended, 0, 1)
	}
	s.used = add(s.used, p.exit.Usage)
	close(p.done)
	s.changeLocked()
}

func add(a, b isolation.Usage) isolation.Usage {
	a.Wall += b.Wall
	a.CPU += b.CPU
	a.PeakMemoryBytes = max(a.PeakMemoryBytes, b.PeakMemoryBytes)
	a.WrittenBytes += b.WrittenBytes
	a.Fuel += b.Fuel
	return a
}

// spawned counts a background task in, and returns the ctx that bounds it; nil
// when there may be no more.
func (s *sandbox) spawned() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if max := s.spec.Resources.Pids; max > 0 && s.tasks >= max {
		return nil
	}
	s.tasks++
	return s.ctx
}

// taskEnded counts a task out.
func (s *sandbox) taskEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks--
	s.changeLocked()
}

// take counts use of a resource in or out, up to a limit; 0 is none.
func (s *sandbox) take(used *int64, n, limit int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && limit > 0 && n > limit-*used {
		return false
	}
	*used += n
	return true
}

func (s *sandbox) lose(detail string) {
	s.mu.Lock()
	s.lost = true
	live, cancel := s.liveLocked(), s.cancel
	s.mu.Unlock()
	for _, p := range live {
		p.end(isolation.ReasonSandboxLost, 0, detail)
	}
	cancel()
}

func (s *sandbox) liveLocked() []*process {
	live := make([]*process, 0, len(s.live))
	for _, p := range s.live {
		live = append(live, p)
	}
	return live
}

// Delete implements isolation.Sandbox.
func (s *sandbox) Delete(ctx context.Context) error {
	if hook := s.driver().faults.Load().Delete; hook != nil {
		if err := hook(ctx, s.id); err != nil {
			return s.fail("delete", "", err)
		}
	}
	if err := s.delete(ctx); err != nil {
		return s.fail("delete", "", err)
	}
	return nil
}

// end begins the deletion.
func (s *sandbox) end() {
	s.mu.Lock()
	s.deleted = true
	live, cancel := s.liveLocked(), s.cancel
	s.mu.Unlock()
	for _, p := range live {
		p.end(isolation.ReasonCanceled, 0, "the sandbox was deleted")
	}
	cancel()
}

func (s *sandbox) delete(ctx context.Context) error {
	s.end()
	if err := s.quiet(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.gone = true
	s.ended = nil
	s.mu.Unlock()
	s.driver().forget(s.id, s)
	s.host.remove(s)
	return nil
}

// quiet waits until nothing runs.
func (s *sandbox) quiet(ctx context.Context) error {
	for {
		s.mu.Lock()
		over, wait := len(s.live) == 0 && s.tasks == 0, s.changed
		s.mu.Unlock()
		if over {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
