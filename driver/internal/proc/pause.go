package proc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// pausing is a sandbox whose place can be paused.
type pausing struct {
	isolation.Sandbox
	sb    *sandbox
	place Pauser
}

// Unwrap lets isolation.As find further abilities.
func (p pausing) Unwrap() any { return p.Sandbox }

// Pause implements [isolation.Pauser].
func (p pausing) Pause(ctx context.Context) error {
	if err := p.sb.turned(ctx, true, p.place.Pause); err != nil {
		return p.sb.fail("pause", "", err)
	}
	return nil
}

// Resume implements [isolation.Pauser].
func (p pausing) Resume(ctx context.Context) error {
	if err := p.sb.turned(ctx, false, p.place.Resume); err != nil {
		return p.sb.fail("resume", "", err)
	}
	return nil
}

// takeTurn lets one caller at a time change what a sandbox as a whole does.
func (s *sandbox) takeTurn(ctx context.Context) (done func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// turned pauses or resumes. When it fails the sandbox is as it was.
func (s *sandbox) turned(ctx context.Context, pause bool, do func(ctx context.Context) error) error {
	done, err := s.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	s.mu.Lock()
	deleting, is := s.deleting, s.paused
	if !deleting && pause {
		s.paused = true // nothing begins any more
	}
	s.mu.Unlock()
	if deleting {
		return isolation.ErrNotFound
	}
	if is == pause {
		return nil
	}
	if l, ok := s.place.(interface{ Lost() bool }); ok && l.Lost() {
		err = fmt.Errorf("the sandbox is lost: %w", isolation.ErrFailedPrecondition)
	}
	if pause {
		if err == nil {
			err = s.await(ctx)
		}
		if err == nil {
			s.clocks(true)
			err = do(ctx)
		}
	} else if err == nil {
		err = do(ctx)
	}
	s.mu.Lock()
	s.paused = pause == (err == nil)
	s.mu.Unlock()
	if pause == (err != nil) {
		s.clocks(false)
	}
	return err
}

// clocks stops the wall clocks of all processes, or lets them run.
func (s *sandbox) clocks(stop bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.live {
		if stop {
			p.wall.stop()
		} else {
			p.wall.run()
		}
	}
}

// wall is the limit on a process's wall time, which does not run while the
// sandbox is paused.
type wall struct {
	mu    sync.Mutex
	over  func()
	left  time.Duration // when it last began to run; 0: no limit
	from  time.Time
	timer *time.Timer // nil: it does not run
	ended bool        // it does not run again
}

func (w *wall) start(limit time.Duration, over func()) {
	w.mu.Lock()
	w.over, w.left = over, limit
	w.mu.Unlock()
	w.run()
}

func (w *wall) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil && w.left > 0 && !w.ended {
		w.from = time.Now()
		w.timer = time.AfterFunc(w.left, w.over)
	}
}

func (w *wall) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
		// At least something is left: 0 would be no limit.
		w.left = max(1, w.left-time.Since(w.from))
	}
}

// rest is what is left of the limit; 0: there is none.
func (w *wall) rest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		return w.left
	}
	return max(1, w.left-time.Since(w.from))
}

func (w *wall) end() {
	w.stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.timer != nil {
		w.timer.Stop()
	}
}
