package proc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/axocoatl/isolation"
)

// Recoverer is an Engine whose detached sandboxes another process finds again.
// Their Places are Leavers, their Tasks Holders.
type Recoverer interface {
	Recoverable(ctx context.Context) ([]isolation.Recoverable, error)
	Recover(ctx context.Context, id string) (Recovered, error)
}

// Discarder is a Recoverer that removes what cannot be recovered; see
// [isolation.Discarder].
type Discarder interface {
	Discard(ctx context.Context, id string) error
}

// Recovered is a sandbox that was found again.
type Recovered struct {
	Place   Place
	Spec    isolation.Spec
	Created time.Time
	Paused  bool   // it is, or will be when it is Resumed
	Left    []Left // its processes, those that ended first in the order of their ends
}

// Left is a process that an earlier host side started.
type Left struct {
	ID    string
	Spec  isolation.ProcessSpec
	Began time.Time
	Ended bool
	// Resume is called once. It calls p.Hold.
	Resume func(p *Process) Task
}

// Leaver is a Place that goes on without this side.
type Leaver interface {
	// Leave gives up what this side has of the place. Waits for its tasks return.
	Leave()
	// Resumed is called once on one that was recovered, when its tasks are there.
	Resumed()
}

// Unwrap lets isolation.As find what not every engine has.
func (d *Driver) Unwrap() any {
	if r, ok := d.eng.(Recoverer); ok && d.eng.Features().Has(isolation.OptionDetached) {
		v := recovering{d, r}
		if x, ok := d.eng.(Discarder); ok {
			return discarding{v, x}
		}
		return v
	}
	return nil
}

type recovering struct {
	d   *Driver
	eng Recoverer
}

// Recoverable implements [isolation.Recoverer].
func (r recovering) Recoverable(ctx context.Context) ([]isolation.Recoverable, error) {
	list, err := r.eng.Recoverable(ctx)
	if err != nil {
		return nil, r.d.fail("list", "", "", err)
	}
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	out := list[:0]
	for _, x := range list {
		if r.d.sandboxes[x.ID] == nil {
			out = append(out, x)
		}
	}
	return out, nil
}

type discarding struct {
	recovering
	eng Discarder
}

// Discard implements [isolation.Discarder].
func (r discarding) Discard(ctx context.Context, id string) error {
	err := errors.Join(ctx.Err(), isolation.ValidateID(id))
	if err == nil {
		err = r.eng.Discard(ctx, id)
	}
	if err != nil {
		return r.d.fail("discard", id, "", err)
	}
	return nil
}

// Recover implements [isolation.Recoverer].
func (r recovering) Recover(ctx context.Context, id string) (isolation.Sandbox, error) {
	sb, err := r.recover(ctx, id)
	if err != nil {
		return nil, r.d.fail("recover", id, "", err)
	}
	return sb.wear(), nil
}

func (r recovering) recover(ctx context.Context, id string) (*sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	sb := newSandbox(r.d, id, isolation.Spec{}, time.Now())
	if err := r.d.reserve(sb); err != nil {
		return nil, err
	}
	defer r.d.creating.Done()
	x, err := r.eng.Recover(ctx, id)
	if err != nil {
		r.d.forget(id)
		return nil, err
	}
	sb.place, sb.spec, sb.created = x.Place, x.Spec, x.Created
	sb.paused = x.Paused
	for _, l := range x.Left {
		p := sb.resume(l)
		if l.Ended && (x.Paused || p.restComes()) {
			select { // what is known of it is here then, also if the place is paused
			case <-p.done:
			case <-ctx.Done():
			}
		}
	}
	if x.Paused {
		sb.clocks(true)
	}
	x.Place.(Leaver).Resumed()
	return sb, nil
}

// resume takes up a process where an earlier host side has left it.
func (s *sandbox) resume(l Left) *Process {
	p := s.newProcess(l.Spec, isolation.Stdio{})
	p.id, p.began, p.begun = l.ID, l.Began, true
	p.task = l.Resume(p)
	s.mu.Lock()
	s.live[p.id] = p
	s.mu.Unlock()
	// One that has ended by now ended in time, as far as anybody can tell.
	if limit := l.Spec.Limits.Wall; limit > 0 && !l.Ended {
		p.wall.start(max(1, time.Until(p.began.Add(limit))), p.wallOver)
	}
	p.task.Begin()
	go p.run(!l.Ended)
	return p
}

// restComes reports whether all output of a process that has ended comes without
// anybody who attaches: what is held for the first who does leaves room for it.
func (p *Process) restComes() bool {
	for _, h := range p.held {
		if h == nil {
			continue
		}
		h.mu.Lock()
		held := h.known - h.acked
		h.mu.Unlock()
		if held > holdBytes*3/4 {
			return false
		}
	}
	return true
}

// leaveTimeout bounds what a driver that is closed waits for.
const leaveTimeout = 10 * time.Second

var errLeft = fmt.Errorf("the driver was closed, and the sandbox goes on without it: %w", isolation.ErrFailedPrecondition)

// leave ends what this side does for a detached sandbox, unless it is being
// deleted: then it is.
func (s *sandbox) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	s.mu.Lock()
	if s.deleting {
		s.mu.Unlock()
		return s.Delete(context.Background())
	}
	s.deleting = true
	s.mu.Unlock()
	err := s.await(ctx)
	s.mu.Lock()
	s.left = true
	live := make([]*Process, 0, len(s.live))
	for _, p := range s.live {
		live = append(live, p)
	}
	ended := s.ended
	s.mu.Unlock()
	for _, p := range append(ended, live...) {
		p.wall.end()
		for _, h := range p.held {
			if h != nil {
				h.cut()
			}
		}
	}
	s.place.(Leaver).Leave()
	for _, p := range live {
		select {
		case <-p.done:
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("process %s is waited for still", p.id))
		}
	}
	s.mu.Lock()
	s.deleted = true
	s.mu.Unlock()
	s.d.forget(s.id)
	return err
}

// wasLeft reports whether this side has left the sandbox.
func (s *sandbox) wasLeft() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}
