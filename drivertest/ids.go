package drivertest

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/axocoatl/isolation"
)

var idChecks = []check{
	{"forms", checkIDForms},
	{"duplicate", checkDuplicateID},
	{"race for one", checkIDRace},
	{"again after delete", checkIDAgain},
	{"late delete", checkLateDelete},
	{"late delete in a race", checkLateDeleteRace},
	{"exec id", checkExecID},
	{"exec id made", checkExecIDMade},
}

var badIDs = []string{"", ".", "..", "-a", "_a", "a/b", "../a", "a b", "a\x00", "a\n", "é", strings.Repeat("a", 65)}

func checkIDForms(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	for _, id := range badIDs {
		sb, err := s.d.Create(s.ctx(t), id, spec)
		if err == nil {
			s.delete(t, sb)
		}
		is(t, "Create with a bad id", err, isolation.ErrInvalidArgument)
	}
	long := s.id()
	for _, id := range []string{s.id() + "._-Z", long + strings.Repeat("x", 64-len(long))} {
		sb, err := s.d.Create(s.ctx(t), id, spec)
		if err != nil {
			t.Errorf("Create %q: %v", id, err)
			continue
		}
		if r := s.startIn(t, sb, job{program: Exit0}); !r.wait(t).Success() {
			t.Errorf("the sandbox %q does not work", id)
		}
		s.delete(t, sb)
	}
}

func checkDuplicateID(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	second, err := s.d.Create(s.ctx(t), sb.ID(), spec)
	is(t, "Create with an id in use", err, isolation.ErrAlreadyExists)
	if second != nil {
		t.Error("Create returned a sandbox with its error")
	}
	// The first one is none the worse.
	r := s.startIn(t, sb, job{program: Exit0})
	succeeded(t, r.wait(t), r)
}

func checkIDRace(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	id, ctx := s.id(), s.ctx(t)
	var made atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			sb, err := s.d.Create(ctx, id, spec)
			if err == nil {
				made.Add(1)
				t.Cleanup(func() { s.delete(t, sb) })
			} else if isolation.Class(err) != isolation.ErrAlreadyExists {
				t.Errorf("Create: %v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("%d of eight Creates with one id made a sandbox", made.Load())
	}
}

func checkIDAgain(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	id := s.id()
	for range 3 {
		sb, err := s.d.Create(s.ctx(t), id, spec)
		if err != nil {
			t.Fatalf("Create: %v", err)
		}
		r := s.startIn(t, sb, job{program: Exit0, process: func(p *isolation.ProcessSpec) { p.ExecID = "same" }})
		succeeded(t, r.wait(t), r)
		s.delete(t, sb)
	}
}

// checkLateDelete deletes a sandbox again whose id is another's by now.
func checkLateDelete(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	first := s.create(t, spec)
	s.delete(t, first)
	second, err := s.d.Create(s.ctx(t), first.ID(), spec)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() { s.delete(t, second) })
	s.delete(t, first)
	r := s.startIn(t, second, job{program: Exit0})
	succeeded(t, r.wait(t), r)
	_, err = s.d.Create(s.ctx(t), first.ID(), spec)
	is(t, "Create with the id of the second sandbox", err, isolation.ErrAlreadyExists)
}

// checkLateDeleteRace deletes a sandbox again and again while others race for its
// id: that is not to free what one of them has just been given.
func checkLateDeleteRace(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	old := s.create(t, spec)
	s.delete(t, old)
	for range 3 {
		var made atomic.Int64
		var wg sync.WaitGroup
		var mu sync.Mutex
		var last isolation.Sandbox
		raced := make(chan struct{})
		ctx := s.ctx(t)
		late := make(chan struct{})
		go func() {
			defer close(late)
			for {
				select {
				case <-raced:
					return
				default:
					s.delete(t, old)
				}
			}
		}()
		for range 8 {
			wg.Go(func() {
				sb, err := s.d.Create(ctx, old.ID(), spec)
				if err == nil {
					made.Add(1)
					mu.Lock()
					last = sb
					mu.Unlock()
				} else if isolation.Class(err) != isolation.ErrAlreadyExists {
					t.Errorf("Create: %v", err)
				}
			})
		}
		wg.Wait()
		close(raced)
		<-late
		if made.Load() != 1 {
			t.Fatalf("%d of eight Creates with one id made a sandbox", made.Load())
		}
		s.delete(t, last)
	}
}

func checkExecID(t testing.TB, s *suite) {
	named := func(p *isolation.ProcessSpec) { p.ExecID = "mine.1" }
	r := s.start(t, job{program: Ready, args: []string{"60"}, process: named})
	r.awaitReady(t)
	if r.p.ID() != "mine.1" {
		t.Errorf("ID() is %q, want the caller's", r.p.ID())
	}
	_, ps := s.command(t, job{program: Exit0, process: named})
	_, err := r.sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	is(t, "Exec with an id in use", err, isolation.ErrAlreadyExists)
	notStarted(t, "Exec with an id in use", err)
	// In another sandbox it is free.
	other := s.start(t, job{program: Exit0, process: named})
	succeeded(t, other.wait(t), other)
	s.state(t, r.sb, isolation.StatusRunning, "mine.1")
}

func checkExecIDMade(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	seen := map[string]bool{}
	for range 5 {
		r := s.startIn(t, sb, job{program: Exit0})
		if err := isolation.ValidateID(r.p.ID()); err != nil || seen[r.p.ID()] {
			t.Errorf("made the id %q: %v; before: %v", r.p.ID(), err, seen)
		}
		seen[r.p.ID()] = true
		if pid := r.p.PID(); pid < 0 {
			t.Errorf("PID() is %d", pid)
		}
		r.wait(t)
	}
}
