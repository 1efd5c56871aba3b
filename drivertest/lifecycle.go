package drivertest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/axocoatl/isolation"
)

var lifecycleChecks = []check{
	{"order", checkOrder},
	{"state", checkState},
	{"exec again", checkExecAgain},
	{"delete twice", checkDeleteTwice},
	{"delete at once", checkDeleteAtOnce},
	{"delete canceled", checkDeleteCanceled},
	{"delete running", checkDeleteRunning},
	{"after delete", checkAfterDelete},
	{"create canceled", checkCreateCanceled},
	{"ctx ends after create", checkCreateCtx},
}

func checkOrder(t testing.TB, s *suite) {
	e, r := s.run(t, job{program: Exit0})
	succeeded(t, e, r)
	e, _ = s.run(t, job{program: Exit7})
	if e.Reason != isolation.ReasonExited || e.Code != 7 {
		t.Errorf("%v, want status 7", e)
	}
	if len(e.LimitsHit) > 0 {
		t.Errorf("limits hit are %v, none was set", e.LimitsHit)
	}
}

func (s *suite) state(t testing.TB, sb isolation.Sandbox, want isolation.Status, execs ...string) {
	t.Helper()
	st, err := sb.State(s.ctx(t))
	if err != nil {
		t.Fatalf("State: %v", err)
	}
	if st.ID != sb.ID() || st.Status != want || st.Created.IsZero() {
		t.Errorf("state is %+v, want %s %s", st, sb.ID(), want)
	}
	if len(st.Execs) != len(execs) || len(execs) == 1 && st.Execs[0] != execs[0] {
		t.Errorf("live processes are %q, want %q", st.Execs, execs)
	}
}

func checkState(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Ready, args: []string{"60"}})
	sb := s.create(t, spec)
	s.state(t, sb, isolation.StatusCreated)
	r := s.startIn(t, sb, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	s.state(t, sb, isolation.StatusRunning, r.p.ID())
	if err := r.p.Kill(s.ctx(t), isolation.SIGKILL); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	r.wait(t)
	s.state(t, sb, isolation.StatusCreated)
}

func checkExecAgain(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	for range 3 {
		r := s.startIn(t, sb, job{program: Exit0})
		succeeded(t, r.wait(t), r)
	}
}

func checkDeleteTwice(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	s.delete(t, sb)
	s.delete(t, sb)
	// One that runs nothing, and one that ran something.
	r := s.start(t, job{program: Exit0})
	r.wait(t)
	s.delete(t, r.sb)
	s.delete(t, r.sb)
}

func checkDeleteAtOnce(t testing.TB, s *suite) {
	r := s.start(t, job{program: Sleep, args: []string{"60"}})
	var wg sync.WaitGroup
	s.within(t, "one of eight Deletes", func() {
		for range 8 {
			wg.Go(func() { s.delete(t, r.sb) })
		}
		wg.Wait()
	})
	ended(t, r.wait(t), isolation.ReasonCanceled)
}

func checkDeleteCanceled(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.sb.Delete(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Delete with a canceled ctx: %v", err)
	}
	s.delete(t, r.sb)
	ended(t, r.wait(t), isolation.ReasonCanceled)
	_, err := r.sb.State(s.ctx(t))
	is(t, "State after Delete", err, isolation.ErrNotFound)
}

func checkDeleteRunning(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	s.within(t, "Delete", func() { s.delete(t, r.sb) })
	e := r.wait(t)
	ended(t, e, isolation.ReasonCanceled)
	if e.Code != -1 {
		t.Errorf("code is %d, want -1", e.Code)
	}
	if got := r.out.String(); got != "ready\n" || e.Stdout.Bytes != int64(len(got)) {
		t.Errorf("output is %q (%+v), want what was written before", got, e.Stdout)
	}
}

func checkAfterDelete(t testing.TB, s *suite) {
	spec, ps := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	r := s.startIn(t, sb, job{program: Exit0})
	e := r.wait(t)
	s.delete(t, sb)
	_, err := sb.State(s.ctx(t))
	is(t, "State after Delete", err, isolation.ErrNotFound)
	p, err := sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	is(t, "Exec after Delete", err, isolation.ErrNotFound)
	notStarted(t, "Exec after Delete", err)
	if p != nil {
		t.Error("Exec after Delete returned a process")
	}
	again, err := r.p.Wait(s.ctx(t))
	if err != nil || again.Code != e.Code || again.Reason != e.Reason {
		t.Errorf("Wait after Delete: %+v, %v, want %+v as before", details(again), err, details(e))
	}
	if err := r.p.Kill(s.ctx(t), isolation.SIGKILL); err != nil {
		t.Errorf("Kill after Delete of a process that had ended: %v", err)
	}
}

func checkCreateCanceled(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	id := s.id()
	sb, err := s.d.Create(ctx, id, spec)
	if err == nil {
		s.delete(t, sb)
		t.Fatal("Create with a canceled ctx: no error")
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Create with a canceled ctx: %v", err)
	}
	// Nothing is left: the id is free.
	if sb, err = s.d.Create(s.ctx(t), id, spec); err != nil {
		t.Fatalf("Create after one that was canceled: %v", err)
	}
	s.delete(t, sb)
}

func checkCreateCtx(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sb, err := s.d.Create(ctx, s.id(), spec)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() { s.delete(t, sb) })
	cancel()
	r := s.startIn(t, sb, job{program: Exit0})
	succeeded(t, r.wait(t), r)
}
