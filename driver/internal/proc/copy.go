package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/axocoatl/isolation"
)

// Snapshotter is a Place that can be written down whole; see
// [isolation.Snapshotter]. While it is under way nothing else is asked of the
// place but to end.
type Snapshotter interface {
	// Snapshot calls what once, when the place stands still.
	Snapshot(ctx context.Context, name string, what func() Held) error
}

// Forker is a Place that can be copied; see [isolation.Forker].
type Forker interface {
	// Fork calls what once, when the place stands still. On error there are no
	// copies.
	Fork(ctx context.Context, ids []string, what func() Held) ([]Place, error)
}

// Adopter is a Place in which processes may be that this side did not start. It is
// [Attachable].
type Adopter interface {
	// Adopt finds such a process, which has run for so long, and calls p.Hold.
	Adopt(ctx context.Context, p *Process, ran time.Duration) (Task, error)
}

// Held is what the host side knows of the processes in a sandbox, for one that goes
// on with them.
type Held struct {
	Processes []Running `json:"processes,omitempty"` // those that ended come first, in that order
	Known     []string  `json:"known,omitempty"`     // ids of those that have ended, oldest first
	Made      int       `json:"made,omitempty"`      // ids that the driver has made
}

// Running is a process that goes on, or can still be attached to.
type Running struct {
	ID   string                `json:"id"`
	Spec isolation.ProcessSpec `json:"spec"`
	Ran  time.Duration         `json:"ran_ns"`            // since its start
	Left time.Duration         `json:"left_ns,omitempty"` // of the limit on wall time; 0: there is none
	Exit *isolation.Exit       `json:"exit,omitempty"`    // nil: it runs
}

// Live lists the ids of those that run.
func (h Held) Live() (ids []string) {
	for _, r := range h.Processes {
		if r.Exit == nil {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

type snapshotting struct {
	isolation.Sandbox
	sb    *sandbox
	place Snapshotter
}

// Unwrap lets isolation.As find further abilities.
func (s snapshotting) Unwrap() any { return s.Sandbox }

// Snapshot implements [isolation.Snapshotter].
func (s snapshotting) Snapshot(ctx context.Context, name string) error {
	err := s.sb.alone(ctx, func() error { return s.place.Snapshot(ctx, name, s.sb.held) })
	if err != nil {
		return s.sb.fail("snapshot", "", err)
	}
	return nil
}

type forking struct {
	isolation.Sandbox
	sb    *sandbox
	place Forker
}

// Unwrap lets isolation.As find further abilities.
func (f forking) Unwrap() any { return f.Sandbox }

// Fork implements [isolation.Forker].
func (f forking) Fork(ctx context.Context, ids []string) ([]isolation.Sandbox, error) {
	out, err := f.fork(ctx, ids)
	if err != nil {
		return nil, f.sb.fail("fork", isolation.NotStarted, err)
	}
	return out, nil
}

func (f forking) fork(ctx context.Context, ids []string) (_ []isolation.Sandbox, err error) {
	d, begin := f.sb.d, time.Now()
	if len(ids) == 0 {
		return nil, fmt.Errorf("no ids: %w", isolation.ErrInvalidArgument)
	}
	var copies []*sandbox
	defer func() {
		for _, sb := range copies {
			if err != nil {
				d.forget(sb.id)
			}
			d.creating.Done()
		}
	}()
	for _, id := range ids {
		if err := isolation.ValidateID(id); err != nil {
			return nil, err
		}
		sb := newSandbox(d, id, f.sb.spec, begin)
		if err := d.reserve(sb); err != nil {
			return nil, err
		}
		copies = append(copies, sb)
	}
	var places []Place
	var held Held
	err = f.sb.alone(ctx, func() (err error) {
		places, err = f.place.Fork(ctx, slices.Clone(ids), func() Held {
			held = f.sb.held()
			return held
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]isolation.Sandbox, len(ids))
	for i, sb := range copies {
		sb.place, sb.createTook = places[i], time.Since(begin)
		err = errors.Join(err, sb.adopt(ctx, held))
		out[i] = sb.wear()
	}
	if err != nil {
		return nil, errors.Join(err, undo(ctx, copies))
	}
	return out, nil
}

// undo removes copies of which one has failed.
func undo(ctx context.Context, copies []*sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
	defer cancel()
	var errs []error
	for _, sb := range copies {
		errs = append(errs, sb.Delete(ctx))
	}
	return errors.Join(errs...)
}

// held tells of the processes as they are now.
func (s *sandbox) held() (h Held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Known, h.Made = slices.Clone(s.order), s.made
	for _, p := range s.ended {
		h.Processes = append(h.Processes, Running{ID: p.id, Spec: p.Spec, Ran: p.exit.Usage.Wall, Exit: &p.exit})
	}
	ended := len(h.Processes)
	for _, p := range s.live {
		h.Processes = append(h.Processes, Running{ID: p.id, Spec: p.Spec, Ran: time.Since(p.began), Left: p.wall.rest()})
	}
	slices.SortFunc(h.Processes[ended:], func(a, b Running) int { return cmp.Compare(a.ID, b.ID) })
	return h
}

// adopt goes on with the processes that are in a new sandbox.
func (s *sandbox) adopt(ctx context.Context, h Held) error {
	a, ok := s.place.(Adopter)
	if !ok && len(h.Processes) > 0 {
		return Unsupported("processes that are there", "a driver that finds them")
	}
	for _, r := range h.Processes {
		if err := s.adoptOne(ctx, a, r); err != nil {
			return fmt.Errorf("process %s: %w", r.ID, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made = h.Made
	for _, id := range h.Known {
		if !s.takenLocked(id) {
			s.known[id] = true
			s.order = append(s.order, id)
		}
	}
	return nil
}

func (s *sandbox) adoptOne(ctx context.Context, a Adopter, r Running) error {
	p := s.newProcess(r.Spec, isolation.Stdio{})
	p.Spec.ExecID, p.was = r.ID, r.Exit
	if err := s.reserve(ctx, p); err != nil {
		return err
	}
	defer s.release()
	t, err := a.Adopt(ctx, p, r.Ran)
	if err != nil {
		s.forget(p, false)
		return err
	}
	p.task, p.began = t, time.Now().Add(-r.Ran)
	p.wall.start(r.Left, p.wallOver)
	s.mu.Lock()
	p.begun = true
	s.mu.Unlock()
	t.Begin()
	go p.run(r.Exit == nil)
	if r.Exit != nil {
		select { // its output is here then, and the next one that ended comes after it
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Maker finds or makes the place of a sandbox that is not made of a Spec, and
// tells what is in it.
type Maker func(ctx context.Context) (Place, isolation.Spec, Held, error)

// Adopt makes a sandbox in another way than Create; op is what that is called.
func (d *Driver) Adopt(ctx context.Context, op, id string, make Maker) (isolation.Sandbox, error) {
	sb, err := d.adopt(ctx, id, make)
	if err != nil {
		return nil, d.fail(op, id, isolation.NotStarted, err)
	}
	return sb.wear(), nil
}

func (d *Driver) adopt(ctx context.Context, id string, make Maker) (*sandbox, error) {
	begin := time.Now()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	sb := newSandbox(d, id, isolation.Spec{}, begin)
	if err := d.reserve(sb); err != nil {
		return nil, err
	}
	defer d.creating.Done()
	pl, spec, held, err := make(ctx)
	if err != nil {
		d.forget(id)
		return nil, err
	}
	sb.place, sb.spec, sb.createTook = pl, spec, time.Since(begin)
	if err := errors.Join(ctx.Err(), sb.adopt(ctx, held)); err != nil {
		return nil, errors.Join(err, undo(ctx, []*sandbox{sb}))
	}
	return sb, nil
}

// alone calls f while nothing is asked of the sandbox; what is asked waits, but
// for its end.
func (s *sandbox) alone(ctx context.Context, f func() error) error {
	done, err := s.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	s.mu.Lock()
	if s.deleting {
		s.mu.Unlock()
		return isolation.ErrNotFound
	}
	barrier := make(chan struct{})
	s.barrier = barrier
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.barrier = nil
		s.mu.Unlock()
		close(barrier)
	}()
	if l, ok := s.place.(interface{ Lost() bool }); ok && l.Lost() {
		return fmt.Errorf("the sandbox is lost: %w", isolation.ErrFailedPrecondition)
	}
	if err := s.await(ctx); err != nil {
		return err
	}
	return f()
}
