package pool

import (
	"context"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// sandbox is one that was handed out: the driver's under the caller's id.
type sandbox struct {
	p       *Pool
	id      string
	created time.Time
	inner   isolation.Sandbox
	innerID string
	ahead   bool // it stood ready
	// theirs: it is not deleted with the pool, but deleted or let go with the driver.
	theirs bool

	mu       sync.Mutex // guards what follows; never held across a call of the driver
	starting int        // Execs under way
	gone     bool       // Delete was called
	deleted  bool
	attempt  *attempt // the deletion that is under way
}

type attempt struct {
	once sync.Once
	done chan struct{} // closed when it is over
	err  error
}

// begin reports true once.
func (a *attempt) begin() (first bool) {
	a.once.Do(func() { first = true })
	return first
}

func (s *sandbox) ID() string { return s.id }

// MadeAhead reports whether it stood ready when it was asked for.
func (s *sandbox) MadeAhead() bool { return s.ahead }

// RecoveryID is the id by which it is recovered, if it is detached.
func (s *sandbox) RecoveryID() string { return s.innerID }

func (s *sandbox) notThere(op string) error {
	return s.p.fail(op, s.id, isolation.NotStarted, isolation.ErrNotFound)
}

func (s *sandbox) State(ctx context.Context) (isolation.State, error) {
	s.mu.Lock()
	gone := s.gone
	s.mu.Unlock()
	if gone {
		return isolation.State{}, s.notThere("state")
	}
	st, err := s.inner.State(ctx)
	if err != nil {
		return st, renamed(err, s.innerID, s.id)
	}
	st.ID, st.Created = s.id, s.created
	return st, nil
}

func (s *sandbox) Exec(ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return nil, s.notThere("exec")
	}
	s.starting++
	s.mu.Unlock()
	pr, err := s.inner.Exec(ctx, p, stdio)
	s.mu.Lock()
	s.starting--
	s.mu.Unlock()
	if err != nil {
		return nil, renamed(err, s.innerID, s.id)
	}
	return pr, nil
}

// Delete gives the sandbox up. If nothing runs in it, its removal is not waited
// for.
func (s *sandbox) Delete(ctx context.Context) error {
	s.mu.Lock()
	first := !s.gone
	s.gone = true
	busy := s.starting > 0
	s.mu.Unlock()
	if first && !busy {
		// What has run is over, and what is left behind ends without being asked
		// for: nobody waits for it.
		if st, err := s.inner.State(ctx); err == nil && st.Status == isolation.StatusCreated {
			s.mu.Lock()
			s.deleted = true
			s.mu.Unlock()
			s.p.release(s.id, s)
			// An ended context begins the deletion, and does not wait for it: from
			// now on its abilities are gone too.
			ended, cancel := context.WithCancel(ctx)
			cancel()
			if s.inner.Delete(ended) != nil {
				s.p.remove(s.inner)
			}
			return nil
		}
	}
	return s.wait(ctx)
}

// wait deletes the sandbox, or joins who does.
func (s *sandbox) wait(ctx context.Context) error {
	s.mu.Lock()
	if s.deleted {
		s.mu.Unlock()
		return nil
	}
	a := s.attempt
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		s.attempt = a
	}
	s.mu.Unlock()
	if a.begin() {
		s.p.behind(func() { s.delete(context.WithoutCancel(ctx), a) })
	}
	select {
	case <-a.done:
		return renamed(a.err, s.innerID, s.id)
	case <-ctx.Done():
		return s.p.fail("delete", s.id, "", context.Cause(ctx))
	}
}

func (s *sandbox) delete(ctx context.Context, a *attempt) {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	a.err = s.inner.Delete(ctx)
	if a.err == nil {
		s.p.release(s.id, s)
	}
	s.mu.Lock()
	s.deleted = a.err == nil
	s.attempt = nil
	s.mu.Unlock()
	close(a.done)
}
