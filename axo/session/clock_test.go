package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// kernel is a clock that can be set, and what the host tells beside it.
type kernel struct {
	*place
	boot string
	up   time.Duration
}

func newKernel(t *testing.T) *kernel { return &kernel{newPlace(t), "first", time.Hour} }

func (k *kernel) tells() (string, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.boot, k.up
}

// pass lets time go by; set sets the clock.
func (k *kernel) pass(d time.Duration) {
	k.advance(d)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.up += d
}

func (k *kernel) set(by time.Duration) { k.advance(by) }

func (k *kernel) reboot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.boot, k.up = "second", 0
}

const years = 10 * 365 * 24 * time.Hour

// TestClockIsSet: a session that a process before this one made lives as long as it was
// to, to whatever the clock was set meanwhile.
func TestClockIsSet(t *testing.T) {
	for name, c := range map[string]struct {
		set    time.Duration
		reboot bool
		want   time.Duration // left of an hour, after half of it
	}{
		"forward":         {years, false, 30 * time.Minute},
		"back":            {-years, false, 30 * time.Minute},
		"not":             {0, false, 30 * time.Minute},
		"not, and reboot": {0, true, 30 * time.Minute},
		// Nobody knows how long that took; it is never longer than it was to be.
		"back, and reboot":    {-years, true, time.Hour},
		"forward, and reboot": {years, true, 30*time.Minute - years},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(t)
			boot := func(c *Config) { c.Boot = k.tells }
			first := k.open(t, boot)
			s := create(t, first, "a", Request{ID: "box", Spec: request().Spec, Life: time.Hour, Idle: 24 * time.Hour})
			made := k.clock()
			first.crash(t)
			k.pass(30 * time.Minute)
			k.set(c.set)
			if c.reboot {
				k.reboot()
			}
			next := k.open(t, boot)
			there := func() bool {
				_, err := next.Get("a", s.ID())
				return err == nil
			}
			if c.want < 0 {
				next.Reap()
				until(t, "its end", func() bool { return !there() })
				return
			}
			again, err := next.Get("a", s.ID())
			if err != nil {
				t.Fatal(err)
			}
			i := again.Info()
			if got := i.Expires.Sub(k.clock()); got != c.want {
				t.Errorf("%v are left, want %v", got, c.want)
			}
			if !i.Created.Equal(made) {
				t.Errorf("made at %v, not at %v", i.Created, made)
			}
			// A process after that has it as the one before.
			k.pass(c.want - time.Minute)
			if err := again.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			next.crash(t)
			k.set(c.set)
			next = k.open(t, boot)
			next.Reap()
			if again, err = next.Get("a", s.ID()); err != nil {
				t.Fatalf("it ended too early: %v", err)
			}
			if got := again.Info().Expires.Sub(k.clock()); got != time.Minute {
				t.Errorf("%v are left, want a minute", got)
			}
			k.pass(2 * time.Minute)
			next.Reap()
			until(t, "its end", func() bool { return !there() })
		})
	}
}

// TestClockIsSetWhileIdle: for how long nothing has happened does not depend on the
// clock, either.
func TestClockIsSetWhileIdle(t *testing.T) {
	k := newKernel(t)
	boot := func(c *Config) { c.Boot = k.tells }
	first := k.open(t, boot)
	create(t, first, "a", Request{ID: "box", Spec: request().Spec, Life: 24 * time.Hour, Idle: 10 * time.Minute})
	first.crash(t)
	k.set(years)
	next := k.open(t, boot)
	next.Reap()
	k.pass(9 * time.Minute)
	next.Reap()
	s, err := next.Get("a", "box")
	if err != nil {
		t.Fatal(err)
	}
	if i := s.Info(); i.IdleEnds == nil || i.IdleEnds.Sub(k.clock()) != time.Minute {
		t.Errorf("%+v", i)
	}
	k.pass(2 * time.Minute)
	next.Reap()
	until(t, "its end", func() bool {
		_, err := next.Get("a", "box")
		return errors.Is(err, isolation.ErrNotFound)
	})
}

// TestTimersAreMonotonic: within one process all that is waited for is told by the clock
// that nobody can set. Go tells by m= that a time has it.
func TestTimersAreMonotonic(t *testing.T) {
	p := newPlace(t)
	real := func(c *Config) { c.Now = nil }
	first := p.open(t, real)
	made := create(t, first, "a", request())
	if err := made.Touch(t.Context(), 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	first.crash(t)
	next := p.open(t, real)
	again, err := next.Get("a", made.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Session{made, again} {
		s.mu.Lock()
		for name, at := range map[string]time.Time{"expires": s.rec.Expires, "active": s.active, "loose": s.loose} {
			if !strings.Contains(at.String(), " m=") {
				t.Errorf("%s is %v", name, at)
			}
		}
		s.mu.Unlock()
	}
	rs := openRuns(t, RunsConfig{Engine: runner(func(context.Context, engine.Request) (*engine.Result, error) { return &engine.Result{}, nil }), Dir: t.TempDir()})
	r, _, err := rs.Start(t.Context(), "a", "", "", theRequest, false, false)
	if err != nil {
		t.Fatal(err)
	}
	<-r.done
	if at := r.endedAt(); !strings.Contains(at.String(), " m=") {
		t.Errorf("a run's end is %v", at)
	}
}

// TestClockIsSetBetweenRuns: a request with a key is not begun again for as long as that
// is promised, to whatever the clock was set; and not much longer.
func TestClockIsSetBetweenRuns(t *testing.T) {
	for name, c := range map[string]struct {
		set    time.Duration
		reboot bool
	}{"forward": {years, false}, "back": {-years, false}, "not": {0, false}, "forward, and reboot": {years, true}, "back, and reboot": {-years, true}} {
		t.Run(name, func(t *testing.T) {
			k := newKernel(t)
			begun := 0
			rc := RunsConfig{
				Engine: runner(func(context.Context, engine.Request) (*engine.Result, error) { begun++; return &engine.Result{}, nil }),
				Dir:    t.TempDir(), Now: k.clock, Boot: k.tells, Retain: time.Hour,
			}
			start := func(rs *Runs) bool {
				t.Helper()
				r, again, err := rs.Start(t.Context(), "a", "key", "digest", theRequest, false, false)
				if err != nil {
					t.Fatal(err)
				}
				<-r.done
				return again
			}
			first := openRuns(t, rc)
			if start(first) {
				t.Fatal("the first is there already")
			}
			k.pass(10 * time.Minute)
			k.set(c.set)
			if c.reboot {
				k.reboot()
			}
			next := openRuns(t, rc)
			k.pass(49 * time.Minute)
			if !start(next) {
				t.Error("it was begun again")
			}
			k.pass(12 * time.Minute)
			if start(next) {
				t.Error("it is known for longer than it is to be")
			}
			if want := 2; begun != want {
				t.Errorf("it was begun %d times, want %d", begun, want)
			}
		})
	}
}

// TestClockIsSetBetweenPrograms: of ended programs those are forgotten that ended first.
func TestClockIsSetBetweenPrograms(t *testing.T) {
	k := newKernel(t)
	open := func(c *Config) { c.Boot, c.MaxEnded = k.tells, 2 }
	first := k.open(t, open)
	s := create(t, first, "a", Request{ID: "box", Spec: request().Spec, Life: 24 * time.Hour})
	ended := func(s *Session, id string) {
		t.Helper()
		e, err := s.Exec(t.Context(), isolation.ProcessSpec{ExecID: id, Args: []string{"exit0"}}, false, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		ended(s, fmt.Sprint("old", i))
		k.pass(time.Minute)
	}
	first.crash(t)
	k.set(-years)
	next := k.open(t, open)
	s, err := next.Get("a", "box")
	if err != nil {
		t.Fatal(err)
	}
	ended(s, "new")
	ended(s, "newer") // at its start one is too many
	for id, want := range map[string]bool{"new": true, "old1": true, "old0": false} {
		until(t, id, func() bool {
			_, err := s.FindExec(t.Context(), id)
			return (err == nil) == want
		})
	}
}
