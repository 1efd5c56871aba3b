package mem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// Host is what detached sandboxes live on. Several drivers that share one are
// like processes of one host: one that ends leaves its detached sandboxes to the
// others.
type Host struct {
	mu       sync.Mutex
	detached map[string]*sandbox // guarded by mu; by the driver's name and the id
	// snapshots of all drivers, by name
	snapshots map[string]*saved // guarded by mu
}

// NewHost makes a host.
func NewHost() *Host { return &Host{detached: map[string]*sandbox{}, snapshots: map[string]*saved{}} }

func hostKey(engine, id string) string { return engine + "/" + id }

func (h *Host) add(s *sandbox) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := hostKey(s.driver().name, s.id)
	if h.detached[key] != nil {
		return isolation.ErrAlreadyExists
	}
	h.detached[key] = s
	return nil
}

func (h *Host) remove(s *sandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if key := hostKey(s.driver().name, s.id); h.detached[key] == s {
		delete(h.detached, key)
	}
}

func (h *Host) find(engine, id string) *sandbox {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.detached[hostKey(engine, id)]
}

func (h *Host) list(engine string) (out []*sandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.detached {
		if s.driver().name == engine {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *sandbox) int { return strings.Compare(a.id, b.id) })
	return out
}

// isHeld reports whether a driver has the sandbox.
func (s *sandbox) isHeld(d *Driver) bool { return s.driver() == d && !s.letGone.Load() }

// letGo ends what the driver does for a detached sandbox.
func (s *sandbox) letGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.letGone.Store(true)
	for _, p := range s.live {
		p.mu.Lock()
		p.stopWallLocked()
		p.alone = time.Now()
		p.mu.Unlock()
		p.stdin.letGo()
		p.stdout.letGo()
		p.stderr.letGo()
	}
}

// recover makes it d's.
func (s *sandbox) recover(d *Driver) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.deleted:
		return isolation.ErrNotFound
	case !s.letGone.Load():
		return fmt.Errorf("another driver has it: %w", isolation.ErrFailedPrecondition)
	case s.lost:
		return fmt.Errorf("it was lost: %w", isolation.ErrNotFound)
	}
	s.holder.Store(d)
	s.letGone.Store(false)
	for _, p := range s.live {
		p.mu.Lock()
		if p.resume == nil && p.spec.Limits.Wall > 0 {
			p.wallLeft = max(1, p.wallLeft-time.Since(p.alone))
			p.runWallLocked()
		}
		p.mu.Unlock()
	}
	return nil
}

// borrowed is a process of a sandbox that its driver may let go.
func (s *sandbox) borrowed(p isolation.Process) isolation.Process {
	if !s.spec.Detached {
		return p
	}
	return borrowed{p, s, s.driver()}
}

type borrowed struct {
	isolation.Process
	s *sandbox
	d *Driver
}

// Wait fails when the driver has let the sandbox go.
func (b borrowed) Wait(ctx context.Context) (isolation.Exit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	gone := make(chan struct{})
	defer close(gone)
	go func() {
		select {
		case <-b.d.gone:
			cancel(errors.New("the driver has let the sandbox go"))
		case <-gone:
		}
	}()
	return b.Process.Wait(ctx)
}

// recovering is a driver that finds detached sandboxes.
type recovering struct {
	d     *Driver
	inner any
}

func (r recovering) Unwrap() any { return r.inner }

// Recoverable implements isolation.Recoverer.
func (r recovering) Recoverable(ctx context.Context) ([]isolation.Recoverable, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, &isolation.Error{Op: "list", Driver: r.d.name, Err: err}
	}
	var out []isolation.Recoverable
	for _, s := range r.d.host.list(r.d.name) {
		if s.isHeld(r.d) {
			continue
		}
		x := isolation.Recoverable{ID: s.id, Created: s.created}
		s.mu.Lock()
		switch {
		case !s.letGone.Load():
			x.Holder = 1
		case s.lost:
			x.Err = fmt.Errorf("it was lost: %w", isolation.ErrNotFound)
		}
		s.mu.Unlock()
		out = append(out, x)
	}
	return out, nil
}

// Discard implements isolation.Discarder.
func (r recovering) Discard(ctx context.Context, id string) error {
	err := context.Cause(ctx)
	if err == nil {
		s := r.d.host.find(r.d.name, id)
		switch {
		case s == nil:
			err = isolation.ErrNotFound
		case !s.letGone.Load():
			err = fmt.Errorf("another driver has it: %w", isolation.ErrFailedPrecondition)
		default:
			err = s.delete(ctx)
		}
	}
	if err != nil {
		return &isolation.Error{Op: "discard", Driver: r.d.name, ID: id, Err: err}
	}
	return nil
}

// Recover implements isolation.Recoverer.
func (r recovering) Recover(ctx context.Context, id string) (isolation.Sandbox, error) {
	s, err := r.d.recover(ctx, id)
	if err != nil {
		return nil, &isolation.Error{Op: "recover", Driver: r.d.name, ID: id, Err: err}
	}
	return s.wear(r.d), nil
}

func (d *Driver) recover(ctx context.Context, id string) (_ *sandbox, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	if err := d.reserve(id); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.forget(id, nil)
		}
	}()
	s := d.host.find(d.name, id)
	if s == nil {
		return nil, isolation.ErrNotFound
	}
	if err := s.recover(d); err != nil {
		s.mu.Lock()
		lost := s.lost && s.letGone.Load()
		s.mu.Unlock()
		if lost {
			d.host.remove(s)
		}
		return nil, err
	}
	if err := d.enter(s); err != nil {
		s.letGo()
		return nil, err
	}
	return s, nil
}
