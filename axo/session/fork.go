package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// maxForks bounds the copies of one call.
const maxForks = 64

// Fork makes copies of the sandbox with what runs in it: one session for each
// request, of which ID, Metadata, Idle and Life count. The session itself goes on as
// it was. After an error there are no copies.
func (s *Session) Fork(ctx context.Context, requests []Request) (_ []*Session, err error) {
	fail := func(err error) ([]*Session, error) {
		return nil, &isolation.Error{Op: "fork", ID: s.id, Outcome: isolation.NotStarted, Err: err}
	}
	if n := len(requests); n == 0 || n > maxForks {
		return fail(fmt.Errorf("%d copies: want 1 to %d: %w", n, maxForks, isolation.ErrInvalidArgument))
	}
	forker, err := ability[isolation.Forker](ctx, s, "a copy")
	if err != nil {
		return fail(err)
	}
	ctx, done := s.begin(ctx, OpFork, "")
	defer func() { done(OperationEnd{Err: err}) }() // when what was made is undone, too
	s.copying.Lock()
	defer s.copying.Unlock()
	s.mu.Lock()
	source := s.rec
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var copies []*Session
	var born []isolation.Sandbox
	live := 0 // copies that are sessions by now
	defer func() {
		if err == nil {
			return
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		for i, c := range copies {
			switch {
			case i < live:
				err = errors.Join(err, c.end(undo, "fork failed"))
			default:
				if i < len(born) {
					err = errors.Join(err, born[i].Delete(undo))
				}
				err = c.made(ctx, err)
			}
		}
	}()
	ids := make([]string, len(requests))
	for i, r := range requests {
		c, err := s.m.reserve(ctx, s.tenant, source.Request.copyAs(r, s.id))
		if err != nil {
			return fail(err)
		}
		c.mu.Lock()
		c.cancel, c.rec.Decision = cancel, source.Decision
		c.mu.Unlock()
		copies, ids[i] = append(copies, c), c.key
	}
	for _, c := range copies {
		if err := c.record(); err != nil {
			return fail(err)
		}
	}
	failpoint.Hit(failpoint.ForkRecorded)
	st, err := s.still(ctx)
	if err != nil {
		return fail(err)
	}
	born, err = forker.Fork(ctx, ids)
	programs := st.programs()
	if err = errors.Join(err, st.goOn(ctx)); err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.Forked)
	for i, c := range copies {
		if err := c.live(ctx, made{born[i], source.Decision}, programs); err != nil {
			return fail(err)
		}
		_ = c.made(ctx, nil)
		live++
	}
	for _, c := range copies {
		s.m.event(ctx, c, "forked", "", "from", s.id)
	}
	return copies, nil
}

// writePrograms writes down what runs in a copy before it is there for its owner.
func (s *Session) writePrograms(programs []program) error {
	for _, p := range programs {
		if err := os.Mkdir(s.execDir(p.ID), 0o700); err != nil {
			return err
		}
		for stream, at := range map[string]int64{"stdout": p.From.Stdout, "stderr": p.From.Stderr} {
			if err := beginLog(s.execDir(p.ID), stream, at); err != nil {
				return err
			}
		}
		if err := save(s.execFile(p.ID), p.Record); err != nil {
			return err
		}
	}
	return nil
}
