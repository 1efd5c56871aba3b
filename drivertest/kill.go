package drivertest

import (
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var killChecks = []check{
	{"KILL", checkKill},
	{"KILL spinning", checkKillSpinning},
	{"TERM", checkTerm},
	{"TERM ignored", checkStubborn},
	{"bad signal", checkBadSignal},
	{"after the end", checkKillEnded},
	{"at once", checkKillAtOnce},
	{"crash", checkCrash},
	{"lost", checkLost},
}

func killed(t testing.TB, e isolation.Exit, sig isolation.Signal) {
	t.Helper()
	if e.Reason != isolation.ReasonSignaled || e.Signal != sig || e.Code != -1 {
		t.Errorf("%+v, want signaled, %v, code -1", details(e), sig)
	}
}

func (r *run) kill(t testing.TB, sig isolation.Signal) {
	t.Helper()
	if err := r.p.Kill(r.s.ctx(t), sig); err != nil {
		t.Fatalf("Kill %v: %v", sig, err)
	}
}

func checkKill(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	r.kill(t, isolation.SIGKILL)
	e := r.wait(t)
	killed(t, e, isolation.SIGKILL)
	if r.out.String() != "ready\n" || e.Stdout != (isolation.Output{Bytes: 6}) {
		t.Errorf("output is %q (%+v), want what was written before", r.out, e.Stdout)
	}
}

func checkKillSpinning(t testing.TB, s *suite) {
	r := s.start(t, job{program: Spin})
	time.Sleep(20 * time.Millisecond) // let it spin; any time will do
	r.kill(t, isolation.SIGKILL)
	killed(t, r.wait(t), isolation.SIGKILL)
}

func checkTerm(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	r.kill(t, isolation.SIGTERM)
	killed(t, r.wait(t), isolation.SIGTERM)
}

func checkStubborn(t testing.TB, s *suite) {
	r := s.start(t, job{program: Stubborn, args: []string{"60"}})
	r.awaitReady(t)
	r.kill(t, isolation.SIGTERM)
	time.Sleep(20 * time.Millisecond) // a program that did not ignore it would be gone
	s.state(t, r.sb, isolation.StatusRunning, r.p.ID())
	r.kill(t, isolation.SIGKILL)
	killed(t, r.wait(t), isolation.SIGKILL)
	// Nor does it outlast a limit or Delete.
	if s.features.Enforcement(isolation.LimitWall).Enforced {
		e, _ := s.run(t, job{program: Stubborn, args: []string{"60"}, process: wall(200 * time.Millisecond)})
		ended(t, e, isolation.ReasonTimeoutWall)
	}
	r = s.start(t, job{program: Stubborn, args: []string{"60"}})
	r.awaitReady(t)
	s.delete(t, r.sb)
	ended(t, r.wait(t), isolation.ReasonCanceled)
}

func checkBadSignal(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	for _, sig := range []isolation.Signal{0, -1, 65, 1 << 20} {
		is(t, "Kill with a bad signal", r.p.Kill(s.ctx(t), sig), isolation.ErrInvalidArgument)
	}
	s.state(t, r.sb, isolation.StatusRunning, r.p.ID())
	// One that does not end a process either works or is refused.
	if err := r.p.Kill(s.ctx(t), 28); err != nil {
		is(t, "Kill with SIGWINCH", err, isolation.ErrUnsupported)
	}
	s.state(t, r.sb, isolation.StatusRunning, r.p.ID())
}

func checkKillEnded(t testing.TB, s *suite) {
	e, r := s.run(t, job{program: Exit7})
	r.kill(t, isolation.SIGKILL)
	r.kill(t, isolation.SIGTERM)
	if again := r.wait(t); again.Code != 7 || again.Reason != e.Reason {
		t.Errorf("after Kill the Exit is %+v, before %+v", details(again), details(e))
	}
}

func checkKillAtOnce(t testing.TB, s *suite) {
	for range 5 {
		r := s.start(t, job{program: Sleep, args: []string{"60"}})
		r.kill(t, isolation.SIGKILL)
		killed(t, r.wait(t), isolation.SIGKILL)
	}
}

func checkCrash(t testing.TB, s *suite) {
	e, _ := s.run(t, job{program: Crash})
	switch e.Reason {
	case isolation.ReasonSignaled:
		killed(t, e, isolation.SIGABRT)
	case isolation.ReasonTrap:
		if e.Detail == "" || e.Code != -1 {
			t.Errorf("%+v, want a detail of the trap and code -1", details(e))
		}
	default:
		t.Errorf("%+v, want signaled or trap", details(e))
	}
}

// checkLost kills what carries a process.
func checkLost(t testing.TB, s *suite) {
	if s.c.Lose == nil {
		s.skip(t, "the driver's test can't kill what carries a process")
	}
	other := s.start(t, job{program: Ready, args: []string{"60"}})
	other.awaitReady(t)
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	s.c.Lose(t, s.d, r.sb, r.p)
	e := r.wait(t)
	ended(t, e, isolation.ReasonSandboxLost)
	if e.Detail == "" || e.Code != -1 {
		t.Errorf("%+v, want a detail of what was lost and code -1", details(e))
	}
	if r.out.String() != "ready\n" {
		t.Errorf("output is %q, want what was written before", r.out)
	}
	// The sandbox goes on, or says that it does not.
	st, err := r.sb.State(s.ctx(t))
	if err != nil {
		t.Fatalf("State: %v", err)
	}
	_, ps := s.command(t, job{program: Exit0})
	p, err := r.sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	switch {
	case err == nil:
		if e, err := p.Wait(s.ctx(t)); err != nil || !e.Success() {
			t.Errorf("a process after the loss: %v, %v", e, err)
		}
	case st.Status != isolation.StatusStopped:
		t.Errorf("status is %s, and Exec does not work: %v", st.Status, err)
	default:
		is(t, "Exec after the loss", err, isolation.ErrFailedPrecondition)
		notStarted(t, "Exec after the loss", err)
	}
	s.delete(t, r.sb)
	// Nobody else noticed.
	s.state(t, other.sb, isolation.StatusRunning, other.p.ID())
	other.kill(t, isolation.SIGKILL)
	killed(t, other.wait(t), isolation.SIGKILL)
}
