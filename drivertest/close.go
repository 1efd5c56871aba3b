package drivertest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/axocoatl/isolation"
)

var closeChecks = []check{
	{"twice", checkCloseTwice},
	{"with running processes", checkCloseRunning},
	{"during Create", checkCloseDuringCreate},
}

func checkCloseTwice(t testing.TB, s *suite) {
	s = s.fresh(t)
	spec, ps := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	for range 2 {
		s.within(t, "Close", func() {
			if err := s.d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	second, err := s.d.Create(s.ctx(t), s.id(), spec)
	is(t, "Create after Close", err, isolation.ErrFailedPrecondition)
	if second != nil {
		t.Error("Create after Close returned a sandbox")
	}
	_, err = sb.State(s.ctx(t))
	is(t, "State after Close", err, isolation.ErrNotFound)
	_, err = sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	is(t, "Exec after Close", err, isolation.ErrNotFound)
	notStarted(t, "Exec after Close", err)
	s.delete(t, sb)
}

func checkCloseRunning(t testing.TB, s *suite) {
	s = s.fresh(t)
	var runs []*run
	for _, j := range []job{
		{program: Ready, args: []string{"60"}},
		{program: Ready, args: []string{"60"}},
	} {
		r := s.start(t, j)
		r.awaitReady(t)
		runs = append(runs, r)
	}
	blocked, _ := s.blocked(t)
	runs = append(runs, blocked)
	s.within(t, "Close", func() {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := s.d.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		wg.Wait()
	})
	for _, r := range runs {
		ended(t, r.wait(t), isolation.ReasonCanceled)
	}
}

func checkCloseDuringCreate(t testing.TB, s *suite) {
	s = s.fresh(t)
	spec, _ := s.command(t, job{program: Exit0})
	ctx := s.ctx(t)
	var wg sync.WaitGroup
	for range s.c.Parallel {
		wg.Go(func() {
			sb, err := s.d.Create(ctx, s.id(), spec)
			if err != nil {
				// The driver may end what it is doing for a Create.
				if isolation.Class(err) != isolation.ErrFailedPrecondition && !errors.Is(err, context.Canceled) {
					t.Errorf("Create during Close: %v, want FailedPrecondition", err)
				}
				return
			}
			s.delete(t, sb) // Close may have done it already
		})
	}
	if err := s.d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
}
