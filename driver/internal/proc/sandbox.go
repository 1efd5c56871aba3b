package proc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

const (
	// deleteTimeout bounds one attempt to delete whatever the caller's
	// context says: an undo outlives cancellation, but not for ever.
	deleteTimeout = 30 * time.Second
	// maxKnown is how many ended ids a sandbox remembers.
	maxKnown = 1024
)

type sandbox struct {
	d          *Driver
	id         string
	spec       isolation.Spec
	created    time.Time
	createTook time.Duration
	place      Place
	killed     atomic.Bool   // with all that is in it, by a deletion
	turn       chan struct{} // has one element while somebody pauses or resumes

	mu       sync.Mutex // guards what follows; never held across a start or a kill
	live     map[string]*Process
	known    map[string]bool // ids of ended processes
	order    []string        // of known, oldest first
	made     int
	holding  int           // calls that have the place; none begins once deleting or paused
	quiet    chan struct{} // closed when holding is 0 again; nil: nobody waits
	paused   bool          // or about to be
	barrier  chan struct{} // closed when the sandbox is not to be left alone any more; nil: it is not
	ended    []*Process    // of a detached sandbox, oldest first
	deleting bool          // nothing begins any more
	left     bool          // it goes on without this side
	deleted  bool
	attempt  *attempt // the deletion that is under way
}

type attempt struct {
	done chan struct{}
	err  error
}

// preparing is a sandbox whose place can prepare interpreters.
type preparing struct {
	isolation.Sandbox
	sb    *sandbox
	place Preparer
}

// Unwrap lets isolation.As find further abilities.
func (p preparing) Unwrap() any { return p.Sandbox }

// Prepare implements [isolation.Preparer].
func (p preparing) Prepare(ctx context.Context, language string) error {
	if err := p.sb.hold(ctx, nil); err != nil {
		return p.sb.fail("prepare", "", err)
	}
	defer p.sb.release()
	if err := p.place.Prepare(ctx, language); err != nil {
		return p.sb.fail("prepare", "", err)
	}
	return nil
}

// hold keeps the sandbox's place, as it is, until release: unless it goes
// already, or is paused. With it f is done, which must not wait; nil: nothing.
func (s *sandbox) hold(ctx context.Context, f func() error) error {
	for {
		wait, err := s.tryHold(f)
		if wait == nil {
			return err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tryHold returns what to wait for when the sandbox is to be left alone now.
func (s *sandbox) tryHold(f func() error) (wait chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.deleting:
		return nil, fmt.Errorf("sandbox %s was deleted: %w", s.id, isolation.ErrNotFound)
	case s.paused:
		return nil, fmt.Errorf("sandbox %s is paused: %w", s.id, isolation.ErrFailedPrecondition)
	case s.barrier != nil:
		return s.barrier, nil
	}
	if f != nil {
		if err := f(); err != nil {
			return nil, err
		}
	}
	s.holding++
	return nil, nil
}

func (s *sandbox) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holding--; s.holding == 0 && s.quiet != nil {
		close(s.quiet)
		s.quiet = nil
	}
}

// await waits until nobody holds the place. It is for who has seen to it that
// nobody begins to.
func (s *sandbox) await(ctx context.Context) error {
	s.mu.Lock()
	if s.holding == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.quiet == nil {
		s.quiet = make(chan struct{})
	}
	quiet := s.quiet
	s.mu.Unlock()
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *sandbox) ID() string { return s.id }

func (s *sandbox) fail(op string, o isolation.Outcome, err error) error {
	return s.d.fail(op, s.id, o, err)
}

func (s *sandbox) State(ctx context.Context) (isolation.State, error) {
	if err := ctx.Err(); err != nil {
		return isolation.State{}, s.fail("state", "", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleted {
		return isolation.State{}, s.fail("state", "", isolation.ErrNotFound)
	}
	st := isolation.State{ID: s.id, Status: isolation.StatusCreated, Created: s.created}
	for id := range s.live {
		st.Execs = append(st.Execs, id)
	}
	slices.Sort(st.Execs)
	switch {
	case s.paused:
		st.Status = isolation.StatusPaused
	case len(st.Execs) > 0:
		st.Status = isolation.StatusRunning
	}
	if lost, ok := s.place.(interface{ Lost() bool }); s.deleting || ok && lost.Lost() {
		st.Status = isolation.StatusStopped
	}
	return st, nil
}

func (s *sandbox) Exec(ctx context.Context, spec isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	p, err := s.exec(ctx, spec, stdio)
	if err != nil {
		return nil, s.fail("exec", isolation.NotStarted, err)
	}
	return p, nil
}

// resizing is a process whose terminal has a size.
type resizing struct {
	isolation.Process
	p    *Process
	task Resizer
}

// Resize implements [isolation.Resizer].
func (r resizing) Resize(ctx context.Context, size isolation.TerminalSize) error {
	if err := r.task.Resize(ctx, size); err != nil {
		return r.p.sb.d.fail("resize", r.p.id, "", err)
	}
	return nil
}

func (s *sandbox) exec(ctx context.Context, spec isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	begin := time.Now()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.spec.ValidateProcess(spec); err != nil {
		return nil, err
	}
	if err := s.d.eng.CheckProcess(spec); err != nil {
		return nil, err
	}
	// The caller may go on to use his slices.
	spec.Args, spec.Env = slices.Clone(spec.Args), slices.Clone(spec.Env)
	p := s.newProcess(spec, stdio)
	if err := s.reserve(ctx, p); err != nil {
		return nil, err
	}
	defer s.release()
	t, err := s.place.Start(ctx, p)
	if err != nil {
		s.forget(p, false)
		return nil, s.started(err)
	}
	p.task = t
	p.began = time.Now()
	p.startTook = p.began.Sub(begin)
	p.wall.start(spec.Limits.Wall, p.wallOver)
	var v isolation.Process
	if p.held[0] != nil {
		// From the beginning, which is there: it cannot fail.
		if v, err = p.seen(isolation.Offsets{}, stdio); err != nil {
			return nil, err
		}
		p.fed.Store(stdio.Stdin != nil)
		s.mu.Lock()
		p.begun = true
		s.mu.Unlock()
	} else {
		v = p.withSize(p)
	}
	t.Begin()
	go p.run(true)
	return v, nil
}

// started says what an error of a start means: what a Delete has taken away from
// under it is not there.
func (s *sandbox) started(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deleting && errors.Is(err, isolation.ErrUnavailable) {
		return fmt.Errorf("sandbox %s was deleted: %w", s.id, isolation.ErrNotFound)
	}
	return err
}

func (s *sandbox) newProcess(spec isolation.ProcessSpec, stdio isolation.Stdio) *Process {
	p := &Process{sb: s, Spec: spec, Stdio: stdio, done: make(chan struct{}), meter: meter{limit: spec.Limits.OutputBytes}}
	p.meter.over = func() {
		p.Stop(isolation.ReasonOutputLimit, 0, fmt.Sprintf("more than %d bytes of output", spec.Limits.OutputBytes))
	}
	return p
}

func (s *sandbox) reserve(ctx context.Context, p *Process) error {
	return s.hold(ctx, func() error {
		p.id = p.Spec.ExecID
		if p.id == "" {
			for p.id == "" || s.takenLocked(p.id) {
				s.made++
				p.id = "exec-" + strconv.Itoa(s.made)
			}
		} else if s.takenLocked(p.id) {
			return fmt.Errorf("process %s: %w", p.id, isolation.ErrAlreadyExists)
		}
		s.live[p.id] = p
		return nil
	})
}

func (s *sandbox) takenLocked(id string) bool { return s.live[id] != nil || s.known[id] }

// forget takes p from the live ones. An id is remembered when its process ran.
func (s *sandbox) forget(p *Process, ran bool) {
	if old := s.ends(p, ran); old != nil {
		old.task.(Holder).Forget()
	}
}

// ends does that, and returns a process that has ended before and that nobody can
// attach to any more.
func (s *sandbox) ends(p *Process, ran bool) (old *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, p.id)
	if !ran || p.left {
		return nil
	}
	if p.held[0] != nil {
		if s.ended = append(s.ended, p); len(s.ended) > maxEnded {
			old = s.ended[0]
			s.ended = slices.Delete(s.ended, 0, 1)
		}
	}
	s.known[p.id] = true
	s.order = append(s.order, p.id)
	if len(s.order) > maxKnown {
		delete(s.known, s.order[0])
		s.order = s.order[1:]
	}
	return old
}

// Delete ends and removes everything. Concurrent calls share one attempt.
func (s *sandbox) Delete(ctx context.Context) error {
	s.mu.Lock()
	if s.deleted {
		s.mu.Unlock()
		return nil
	}
	s.deleting = true
	a := s.attempt
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		s.attempt = a
		go s.delete(context.WithoutCancel(ctx), a)
	}
	s.mu.Unlock()
	select {
	case <-a.done:
		if a.err != nil {
			return s.fail("delete", "", a.err)
		}
		return nil
	case <-ctx.Done():
		return s.fail("delete", "", ctx.Err())
	}
}

func (s *sandbox) delete(ctx context.Context, a *attempt) {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	a.err = s.remove(ctx)
	if a.err == nil {
		s.d.forget(s.id)
	}
	s.mu.Lock()
	s.deleted = a.err == nil
	s.attempt = nil
	s.mu.Unlock()
	close(a.done)
}

// startPatience is how long what has only begun may take when its sandbox is
// deleted.
const startPatience = time.Second

// begun waits until nothing is under way any more. A place whose other side does
// not answer is killed for that: then nobody waits for it.
func (s *sandbox) begun(ctx context.Context) error {
	patience, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if s.await(patience) == nil {
		return nil
	}
	killed := s.kill(ctx)
	// What has begun meanwhile is killed with the rest.
	if err := s.await(ctx); err != nil {
		return errors.Join(fmt.Errorf("what is under way has not ended: %w", err), killed)
	}
	return nil
}

// deletedDetail is of the programs that a deletion ends.
const deletedDetail = "the sandbox was deleted"

func (s *sandbox) kill(ctx context.Context) error {
	s.killed.Store(true)
	return s.place.Kill(ctx)
}

func (s *sandbox) remove(ctx context.Context) error {
	if err := s.begun(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	live := make([]*Process, 0, len(s.live))
	for _, p := range s.live {
		live = append(live, p)
	}
	s.mu.Unlock()
	for _, p := range live {
		p.Stop(isolation.ReasonCanceled, 0, deletedDetail)
	}
	killed := s.kill(ctx)
	for _, p := range live {
		select {
		case <-p.done:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("process %s has not ended: %w", p.id, ctx.Err()), killed)
		}
	}
	return errors.Join(killed, s.place.Remove(ctx))
}
