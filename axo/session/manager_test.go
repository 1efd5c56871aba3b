package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is what outlives a process: its directory, and the sandboxes on a host.
type place struct {
	dir  string
	host *mem.Host
	now  time.Time
	mu   sync.Mutex
}

// life is one process at a place.
type life struct {
	*Manager
	engine *engine.Engine
	driver *mem.Driver
}

func newPlace(t *testing.T) *place {
	return &place{dir: t.TempDir(), host: mem.NewHost(), now: time.Now()}
}

func (p *place) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (p *place) advance(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

func (p *place) open(t *testing.T, change ...func(*Config)) *life {
	t.Helper()
	d := mem.New(mem.Config{Host: p.host, Features: func(f *isolation.Features) { f.Tier = isolation.TierOCI }})
	var reg isolation.Registry
	reg.Add(isolation.TierOCI, d)
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Engine: e, Dir: p.dir, Now: p.clock}
	for _, f := range change {
		f(&c)
	}
	m, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	l := &life{m, e, d}
	t.Cleanup(func() { l.end(t) })
	return l
}

// end is an orderly end of the process. It may be called again.
func (l *life) end(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Error(err)
	}
}

func request() Request {
	return Request{Spec: isolation.Spec{Requirement: isolation.Arbitrary}}
}

func create(t *testing.T, l *life, tenant string, r Request) *Session {
	t.Helper()
	s, err := l.Create(t.Context(), tenant, r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func output(t *testing.T, e *Exec, from isolation.Offsets) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := e.Follow(ctx, from, func(s Stream, p []byte) error {
		if s == Stdout {
			out.Write(p)
		} else {
			errs.Write(p)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String()
}

func run(t *testing.T, s *Session, args ...string) *Exec {
	t.Helper()
	e, err := s.Exec(t.Context(), isolation.ProcessSpec{Args: args}, false, false)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func is(t *testing.T, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%v, want %v", err, class)
	}
}

func left(t *testing.T, p *place) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(p.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestSession(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	s := create(t, l, "a", Request{Spec: request().Spec, Metadata: map[string]string{"k": "v"}})
	e := run(t, s, "both")
	if out, errs := output(t, e, isolation.Offsets{}); out != "out\n" || errs != "err\n" {
		t.Errorf("%q %q", out, errs)
	}
	exit, err := e.Wait(t.Context())
	if err != nil || exit.Code != 0 || exit.Stdout.Bytes != 4 {
		t.Errorf("%v %v", exit, err)
	}
	// Again, from an offset, after its end.
	if out, errs := output(t, e, isolation.Offsets{Stdout: 1, Stderr: 3}); out != "ut\n" || errs != "\n" {
		t.Errorf("%q %q", out, errs)
	}
	is(t, e.Follow(t.Context(), isolation.Offsets{Stdout: 99}, nil), isolation.ErrInvalidArgument)
	if i := s.Info(); i.Status != api.StatusRunning || !i.Durable || i.Decision.Engine != "mem" || i.IdleEnds == nil || i.Metadata["k"] != "v" {
		t.Errorf("%+v", i)
	}
	for _, c := range []struct {
		metadata map[string]string
		want     int
	}{{nil, 1}, {map[string]string{"k": "v"}, 1}, {map[string]string{"k": "w"}, 0}} {
		if got := l.List("a", c.metadata); len(got) != c.want {
			t.Errorf("%v: %d sessions", c.metadata, len(got))
		}
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	_, err = s.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"exit0"}}, false, false)
	is(t, err, isolation.ErrNotFound)
	_, err = l.Get("a", s.ID())
	is(t, err, isolation.ErrNotFound)
	if got := left(t, p); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestStdinKillAndIds(t *testing.T) {
	l := newPlace(t).open(t)
	s := create(t, l, "a", request())
	e, err := s.Exec(t.Context(), isolation.ProcessSpec{ExecID: "e", Args: []string{"echo"}}, true, false)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Exec(t.Context(), isolation.ProcessSpec{ExecID: "e", Args: []string{"echo"}}, true, false)
	is(t, err, isolation.ErrAlreadyExists)
	for _, part := range []string{"one ", "two"} {
		if err := e.GiveStdin(t.Context(), strings.NewReader(part), -1, part == "two"); err != nil {
			t.Fatal(err)
		}
	}
	if out, _ := output(t, e, isolation.Offsets{}); out != "one two" {
		t.Errorf("%q", out)
	}
	is(t, e.GiveStdin(t.Context(), strings.NewReader("x"), -1, false), isolation.ErrFailedPrecondition)
	if _, err := s.FindExec(t.Context(), "other"); !errors.Is(err, isolation.ErrNotFound) {
		t.Error(err)
	}
	k := run(t, s, "ready", "1000")
	if err := k.Kill(t.Context(), isolation.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit, err := k.Wait(t.Context()); err != nil || exit.Signal != isolation.SIGTERM {
		t.Errorf("%v %v", exit, err)
	}
	_, err = s.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"no such program"}}, false, false)
	is(t, err, isolation.ErrNotFound)
	if list, err := s.Execs(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("%d programs, %v", len(list), err)
	}
}

func TestTenantsDoNotMeet(t *testing.T) {
	l := newPlace(t).open(t)
	s := create(t, l, "a", Request{ID: "mine", Spec: request().Spec})
	if _, err := l.Get("b", s.ID()); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	if got := l.List("b", nil); len(got) != 0 {
		t.Errorf("another tenant lists %d", len(got))
	}
}

func TestQuota(t *testing.T) {
	p := newPlace(t)
	l := p.open(t, func(c *Config) {
		c.Quota = func(tenant string) Quota {
			if tenant == "b" {
				return Quota{MemoryBytes: 100}
			}
			return Quota{Sandboxes: 2}
		}
	})
	one := create(t, l, "a", request())
	create(t, l, "a", request())
	_, err := l.Create(t.Context(), "a", request())
	is(t, err, isolation.ErrResourceExhausted)
	if isolation.OutcomeOf(err) != isolation.NotStarted {
		t.Error("it does not say that a retry is safe")
	}
	if err := one.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	create(t, l, "a", request())
	_, err = l.Create(t.Context(), "b", request())
	is(t, err, isolation.ErrInvalidArgument)
	with := func(n int64) Request {
		r := request()
		r.Spec.Resources.MemoryBytes = n
		return r
	}
	create(t, l, "b", with(60))
	_, err = l.Create(t.Context(), "b", with(41))
	is(t, err, isolation.ErrResourceExhausted)
	create(t, l, "b", with(40))
	if n := len(left(t, p)); n != 4 {
		t.Errorf("%d sessions on disk", n)
	}
}

// All tenants together have no more than the host takes.
func TestSandboxesOfAll(t *testing.T) {
	l := newPlace(t).open(t, func(c *Config) { c.Sandboxes = 2 })
	one := create(t, l, "a", request())
	create(t, l, "b", request())
	_, err := l.Create(t.Context(), "c", request())
	is(t, err, isolation.ErrUnavailable)
	if err := one.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	create(t, l, "c", request())
}

func TestTimes(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	idle := create(t, l, "a", Request{Spec: request().Spec, Idle: time.Minute})
	busy := create(t, l, "a", Request{Spec: request().Spec, Idle: time.Minute, Life: time.Hour})
	prog := run(t, busy, "ready", "100000")
	gone := func(s *Session) bool {
		_, err := l.Get("a", s.ID())
		return errors.Is(err, isolation.ErrNotFound)
	}
	wait := func(s *Session) {
		t.Helper()
		for range 1000 {
			l.Reap()
			if gone(s) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s is there still: %+v", s.ID(), s.Info())
	}
	p.advance(50 * time.Second)
	if err := idle.Touch(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	p.advance(50 * time.Second)
	l.Reap()
	if gone(idle) {
		t.Error("activity does not count")
	}
	p.advance(11 * time.Second)
	wait(idle)
	if gone(busy) || busy.Info().IdleEnds != nil {
		t.Error("a running program does not count as activity")
	}
	if err := prog.Kill(t.Context(), isolation.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := prog.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := busy.Touch(t.Context(), 2*time.Hour, 0); err != nil {
		t.Fatal(err)
	}
	p.advance(time.Hour)
	wait(busy)
	_, err := l.Create(t.Context(), "a", Request{Spec: request().Spec, Life: 1000 * 24 * time.Hour})
	is(t, err, isolation.ErrInvalidArgument)
}

func (l *life) recoverable(t *testing.T) ([]isolation.Recoverable, error) {
	r, ok := isolation.As[isolation.Recoverer](l.driver)
	if !ok {
		t.Fatal("the driver does not find sandboxes again")
	}
	return r.Recoverable(t.Context())
}

// crash is the end of a process without any warning.
func (l *life) crash(t *testing.T) {
	t.Helper()
	l.cancel() // nobody writes anything down any more
	l.driver.Crash()
	l.wg.Wait()
}

func TestSessionsAndOutputOutliveTheProcess(t *testing.T) {
	for _, how := range []string{"close", "crash"} {
		t.Run(how, func(t *testing.T) {
			p := newPlace(t)
			first := p.open(t)
			s := create(t, first, "a", Request{Spec: request().Spec, Metadata: map[string]string{"k": "v"}, Idle: time.Hour})
			ended := run(t, s, "print", "before")
			if _, err := ended.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			cat, err := s.Exec(t.Context(), isolation.ProcessSpec{ExecID: "cat", Args: []string{"echo"}}, true, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := cat.GiveStdin(t.Context(), strings.NewReader("first "), 0, false); err != nil {
				t.Fatal(err)
			}
			for i := 0; cat.Info().Stdout.To < 6; i++ {
				if i > 1000 {
					t.Fatal("no output")
				}
				time.Sleep(10 * time.Millisecond)
			}
			flood := run(t, s, "flood", fmt.Sprint(3<<20))
			if how == "crash" {
				first.crash(t)
			} else {
				first.end(t)
			}
			second := p.open(t)
			again, err := second.Get("a", s.ID())
			if err != nil {
				t.Fatal(err)
			}
			if i := again.Info(); i.Status != api.StatusRunning || i.Metadata["k"] != "v" || i.IdleMS != 3600_000 {
				t.Errorf("%+v", i)
			}
			find := func(id string) *Exec {
				t.Helper()
				e, err := again.FindExec(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			if out, _ := output(t, find(ended.ID()), isolation.Offsets{}); out != "before" {
				t.Errorf("of the ended one %q", out)
			}
			if err := find("cat").GiveStdin(t.Context(), strings.NewReader("second"), -1, true); err != nil {
				t.Fatal(err)
			}
			if out, _ := output(t, find("cat"), isolation.Offsets{}); out != "first second" {
				t.Errorf("of the one with input %q", out)
			}
			out, _ := output(t, find(flood.ID()), isolation.Offsets{})
			exit, err := find(flood.ID()).Wait(t.Context())
			if err != nil || len(out) != 3<<20 || exit.Stdout.Bytes != 3<<20 {
				t.Errorf("%d bytes; %+v, %v", len(out), exit, err)
			}
			if err := again.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := left(t, p); len(got) != 0 {
				t.Errorf("left: %v", got)
			}
		})
	}
}

func TestEphemeralSessionsGoWithTheProcess(t *testing.T) {
	p := newPlace(t)
	first := p.open(t)
	r := request()
	r.Ephemeral = true
	create(t, first, "a", r)
	first.end(t)
	if got := left(t, p); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	// After a crash its record says truthfully that it is lost.
	second := p.open(t)
	s := create(t, second, "a", r)
	second.crash(t)
	third := p.open(t)
	again, err := third.Get("a", s.ID())
	if err != nil {
		t.Fatal(err)
	}
	if i := again.Info(); i.Status != api.StatusLost || i.Reason == "" {
		t.Errorf("%+v", i)
	}
	_, err = again.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"exit0"}}, false, false)
	is(t, err, isolation.ErrFailedPrecondition)
	if err := again.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHalfMadeSessionsAreRemoved(t *testing.T) {
	p := newPlace(t)
	first := p.open(t)
	making := create(t, first, "a", Request{ID: "making", Spec: request().Spec})
	deleting := create(t, first, "a", Request{ID: "deleting", Spec: request().Spec})
	for s, phase := range map[*Session]string{making: phaseCreating, deleting: phaseDeleting} {
		rec := s.rec
		rec.Phase = phase
		if phase == phaseCreating {
			rec.Decision = engine.Decision{} // it is not known yet
		}
		if err := save(filepath.Join(s.dir(), sessionFile), rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(p.dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	first.crash(t)
	second := p.open(t)
	if got := append(left(t, p), fmt.Sprint(len(second.List("a", nil)))); len(got) != 1 || got[0] != "0" {
		t.Errorf("left: %v", got)
	}
	if list, err := second.recoverable(t); err != nil || len(list) != 0 {
		t.Errorf("sandboxes are left: %v %v", list, err)
	}
}

func TestCorruptRecord(t *testing.T) {
	for name, text := range map[string]string{
		"half":    `{"version":1,"id":"s"`,
		"version": `{"version":99,"id":"s","tenant":"a","phase":"live"}`,
		"other":   `{"version":1,"id":"another","tenant":"a","phase":"live"}`,
		"phase":   `{"version":1,"id":"s","tenant":"a","phase":"?"}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			first := p.open(t)
			s := create(t, first, "a", Request{ID: "s", Spec: request().Spec})
			first.crash(t)
			if err := os.WriteFile(filepath.Join(s.dir(), sessionFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			second := p.open(t)
			second.mu.Lock()
			again := second.sessions[keyOf("a", "s")]
			second.mu.Unlock()
			if again == nil {
				t.Fatal("it is not known any more")
			}
			if i := again.Info(); i.Status != api.StatusUnknown || i.Reason == "" {
				t.Errorf("%+v", i)
			}
			_, err := again.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"exit0"}}, false, false)
			is(t, err, isolation.ErrUnavailable)
			if err := again.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if list, err := second.recoverable(t); err != nil || len(list) != 0 || len(left(t, p)) != 0 {
				t.Errorf("left: %v %v %v", list, err, left(t, p))
			}
		})
	}
}

func TestDeleteWhileItIsMade(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	reached := make(chan struct{})
	l.driver.SetFaults(mem.Faults{Create: func(ctx context.Context, _ string, _ isolation.Spec) error {
		close(reached)
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	made := make(chan error, 1)
	go func() {
		_, err := l.Create(context.Background(), "a", Request{ID: "s", Spec: request().Spec})
		made <- err
	}()
	<-reached
	s, err := l.Get("a", "s")
	if err != nil {
		t.Fatal(err)
	}
	if st := s.Info().Status; st != api.StatusCreating {
		t.Errorf("it is %s", st)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-made; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if got := left(t, p); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestExecWhileItStarts: a program is there for others when it was started, and not
// before, when it has no outputs yet.
func TestExecWhileItStarts(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	s, err := l.Create(t.Context(), "a", Request{ID: "s", Spec: request().Spec})
	if err != nil {
		t.Fatal(err)
	}
	reached, on := make(chan struct{}), make(chan struct{})
	l.driver.SetFaults(mem.Faults{Exec: func(context.Context, string, isolation.ProcessSpec) error {
		close(reached)
		<-on
		return nil
	}})
	started := make(chan error, 1)
	go func() {
		_, err := s.Exec(context.Background(), isolation.ProcessSpec{ExecID: "x", Args: []string{"exit", "0"}}, false, false)
		started <- err
	}()
	<-reached
	if list, err := s.Execs(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("programs that are told of: %v, %v", list, err)
	}
	if _, err := s.FindExec(t.Context(), "x"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("it is found: %v", err)
	}
	close(on)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if e, err := s.FindExec(t.Context(), "x"); err != nil || e.Info().ID != "x" {
		t.Errorf("it is not found: %v", err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDeleteThatFailsCanBeRepeated(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	s := create(t, l, "a", request())
	l.driver.SetFaults(mem.Faults{Delete: func(context.Context, string) error { return errors.New("busy") }})
	if err := s.Delete(t.Context()); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("%v", err)
	}
	if st := s.Info().Status; st != api.StatusDeleting {
		t.Errorf("it is %s", st)
	}
	l.driver.SetFaults(mem.Faults{})
	p.advance(time.Minute)
	for i := 0; len(left(t, p)) > 0; i++ {
		if i > 1000 {
			t.Fatal("nobody tried again")
		}
		l.Reap()
		time.Sleep(10 * time.Millisecond)
	}
}

func TestReadOnlyState(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	if err := os.RemoveAll(p.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.dir, nil, 0o600); err != nil { // no directory can be made in a file
		t.Fatal(err)
	}
	if _, err := l.Create(t.Context(), "a", request()); err == nil || isolation.OutcomeOf(err) != isolation.NotStarted {
		t.Errorf("%v", err)
	}
	if got := l.List("a", nil); len(got) != 0 {
		t.Errorf("%d sessions", len(got))
	}
	if list, err := l.recoverable(t); err != nil || len(list) != 0 {
		t.Errorf("left: %v %v", list, err)
	}
}

func TestEndedProgramsAreForgotten(t *testing.T) {
	l := newPlace(t).open(t, func(c *Config) { c.MaxEnded = 3 })
	s := create(t, l, "a", request())
	for range 6 {
		if _, err := run(t, s, "exit0").Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.Execs(t.Context()); err != nil || len(list) > 4 {
		t.Errorf("%d are known, %v", len(list), err)
	}
	if list, err := os.ReadDir(filepath.Join(s.dir(), execsDir)); err != nil || len(list) > 4 {
		t.Errorf("%d are on disk, %v", len(list), err)
	}
}

// until waits for something that is done in the background.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 3000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("waited in vain for " + what)
}

// A session whose maker wants that is paused at the end of its time, and ends when it has
// been kept as long as any.
func TestPauseAtEnd(t *testing.T) {
	p := newPlace(t)
	l := p.open(t, func(c *Config) { c.MaxLife = 100 * time.Hour })
	r := request()
	r.PauseAtEnd, r.Life = true, time.Minute
	s := create(t, l, "a", r)
	p.advance(2 * time.Minute)
	l.Reap()
	until(t, "its pause", func() bool { return s.Info().Status == api.StatusPaused })
	if left := s.Info().Expires.Sub(p.clock()); left < 99*time.Hour {
		t.Errorf("it is kept for %v", left)
	}
	p.advance(99 * time.Hour)
	l.Reap()
	if err := s.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Touch(t.Context(), time.Minute, time.Minute); err != nil {
		t.Fatal(err)
	}
	p.advance(2 * time.Minute)
	l.Reap()
	until(t, "its pause, again", func() bool { return s.Info().Status == api.StatusPaused })
	p.advance(101 * time.Hour)
	l.Reap()
	until(t, "its end", func() bool {
		_, err := l.Get("a", s.ID())
		return errors.Is(err, isolation.ErrNotFound)
	})
}

// One that cannot be paused is not made.
func TestPauseAtEndIsRefused(t *testing.T) {
	p := newPlace(t)
	var reg isolation.Registry
	reg.Add(isolation.TierOCI, mem.New(mem.Config{Features: func(f *isolation.Features) {
		f.Tier, f.Abilities = isolation.TierOCI, slices.DeleteFunc(f.Abilities, func(a string) bool { return a == isolation.AbilityPause })
	}}))
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	l := p.open(t, func(c *Config) { c.Engine = e })
	r := request()
	r.PauseAtEnd = true
	if _, err := l.Create(t.Context(), "a", r); !errors.Is(err, isolation.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	if list := l.List("a", nil); len(list) != 0 {
		t.Errorf("%v is left", list)
	}
}
