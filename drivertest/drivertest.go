package drivertest

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// Config is what the suite must know of a driver. New and Command are needed.
type Config struct {
	// New makes a fresh driver. The suite closes it. One with the ability
	// recover finds what those before it have left.
	New func(t testing.TB) isolation.Driver
	// Command returns how to run p; ok is false when this tier can't have it.
	// The suite adds limits, stdio and, for some checks, environment.
	Command func(p Program, args ...string) (spec isolation.Spec, ps isolation.ProcessSpec, ok bool)
	// Lose kills what carries the process: its worker, its VMM. nil: nothing
	// does, and sandbox_lost is not checked.
	Lose func(t testing.TB, d isolation.Driver, sb isolation.Sandbox, p isolation.Process)
	// Host starts another host of the driver's, which shares all state with the
	// drivers that New makes, and has it [Play] the story. What Play writes can
	// be read; kill ends the host as SIGKILL does. It is needed where a driver
	// tells the ability recover. See [HostProcess].
	Host func(t testing.TB, story Story) (stdout, stderr io.Reader, kill func())
	// Leftovers lists what the driver has on the host by now (control groups,
	// mounts, files, processes that are no children). What is listed after
	// the suite and was not before is a leak. nil: none of these are made.
	Leftovers func(t testing.TB) []string
	// Patience is how long the suite waits for what must happen before it
	// calls it a hang; 0: what AXO_TEST_PATIENCE says, for hosts that are
	// emulated, else 30 s, for hosts that are busy.
	Patience time.Duration
	// Large is the size of the largest stream; 0: 64 MiB, 4 MiB with -short.
	Large int64
	// Parallel is how many processes run at once where many do; 0: 16.
	Parallel int

	// Groups are the only groups of checks that are run, for a driver that wraps
	// one which passes all of them by itself, and is slow; nil: all.
	Groups []string
}

func (c Config) withDefaults() Config {
	if c.Patience <= 0 {
		c.Patience = 30 * time.Second
		if d, err := time.ParseDuration(os.Getenv("AXO_TEST_PATIENCE")); err == nil && d > 0 {
			c.Patience = d
		}
	}
	if c.Large <= 0 {
		c.Large = 64 << 20
		if testing.Short() {
			c.Large = 4 << 20
		}
	}
	if c.Parallel <= 0 {
		c.Parallel = 16
	}
	return c
}

// check is one thing that every driver must do.
type check struct {
	name string
	f    func(t testing.TB, s *suite)
}

// groups are the checks by what they look at.
func groups() []struct {
	name   string
	checks []check
} {
	return []struct {
		name   string
		checks []check
	}{
		{"probe", probeChecks}, {"lifecycle", lifecycleChecks}, {"ids", idChecks}, {"arguments", argumentChecks},
		{"exec", execChecks}, {"kill", killChecks}, {"stdio", stdioChecks}, {"limits", limitChecks},
		{"abilities", abilityChecks}, {"copies", copyChecks}, {"recover", recoverChecks}, {"close", closeChecks}, {"hammer", hammerChecks},
	}
}

// canary is an environment variable of the calling program that no sandbox may
// see.
const canary = "DRIVERTEST_CANARY"

// Run checks a driver. It must not run beside other tests: it looks for
// goroutines, descriptors and child processes that are left.
func Run(t *testing.T, c Config) {
	t.Setenv(canary, "inherited") // also keeps the calling test from being parallel
	c = c.withDefaults()
	before := takeStock(t, c)
	s := newSuite(t, c)
	for _, g := range groups() {
		if c.Groups != nil && !slices.Contains(c.Groups, g.name) {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			for _, ck := range g.checks {
				t.Run(ck.name, func(t *testing.T) {
					t.Parallel()
					ck.f(t, s)
				})
			}
		})
	}
	if err := s.d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	before.compare(t)
	s.skips.report(t)
}

// suite is a driver under test, shared by the checks.
type suite struct {
	c        Config
	d        isolation.Driver
	features isolation.Features
	ids      *atomic.Int64
	skips    *skips
}

func newSuite(t testing.TB, c Config) *suite {
	t.Helper()
	c = c.withDefaults()
	s := &suite{c: c, d: c.New(t), ids: new(atomic.Int64), skips: &skips{}}
	f, err := s.d.Probe(s.ctx(t))
	if err != nil {
		_ = s.d.Close()
		t.Fatalf("Probe: %v", err)
	}
	s.features = f
	return s
}

// fresh is the suite over a driver of its own, for checks that close it.
func (s *suite) fresh(t testing.TB) *suite {
	t.Helper()
	own := *s
	own.d = s.c.New(t)
	t.Cleanup(func() {
		if err := own.d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return &own
}

// skips collects what could not be checked.
type skips struct {
	mu   sync.Mutex
	list []string
}

func (k *skips) add(s string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, s)
}

func (k *skips) report(t testing.TB) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range k.list {
		t.Logf("NOT CHECKED: %s", s)
	}
}

func (s *suite) skip(t testing.TB, format string, a ...any) {
	t.Helper()
	why := fmt.Sprintf(format, a...)
	s.skips.add(t.Name() + ": " + why)
	t.Skip(why)
}

// ctx is a context that only a hang ends.
func (s *suite) ctx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), s.c.Patience)
	t.Cleanup(cancel)
	return ctx
}

// within calls f and fails when it does not return.
func (s *suite) within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(s.c.Patience):
		t.Fatalf("%s has not returned after %v", what, s.c.Patience)
	}
}

// id makes a sandbox id.
func (s *suite) id() string { return fmt.Sprintf("dt-%d-%d", os.Getpid(), s.ids.Add(1)) }

// job is one run.
type job struct {
	program Program
	args    []string
	spec    func(*isolation.Spec)
	process func(*isolation.ProcessSpec)
	stdio   isolation.Stdio // Stdout and Stderr that are nil are captured
	discard bool            // leave them nil
}

// command returns how to run j, and skips the check when that can't be.
func (s *suite) command(t testing.TB, j job) (isolation.Spec, isolation.ProcessSpec) {
	t.Helper()
	spec, ps, ok := s.c.Command(j.program, j.args...)
	if !ok {
		s.skip(t, "the driver has no program %q", j.program)
	}
	if j.spec != nil {
		j.spec(&spec)
	}
	if j.process != nil {
		j.process(&ps)
	}
	return spec, ps
}

// create makes a sandbox that the check's end deletes.
func (s *suite) create(t testing.TB, spec isolation.Spec) isolation.Sandbox {
	t.Helper()
	id := s.id()
	sb, err := s.d.Create(s.ctx(t), id, spec)
	if err != nil {
		t.Fatalf("Create %s: %v", id, err)
	}
	t.Cleanup(func() { s.delete(t, sb) })
	if sb.ID() != id {
		t.Errorf("ID() is %q, want %q", sb.ID(), id)
	}
	return sb
}

func (s *suite) delete(t testing.TB, sb isolation.Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.c.Patience)
	defer cancel()
	if err := sb.Delete(ctx); err != nil {
		t.Errorf("Delete %s: %v", sb.ID(), err)
	}
}

// run is a started job.
type run struct {
	s        *suite
	sb       isolation.Sandbox
	p        isolation.Process
	out, err *capture
	began    time.Time
}

// start creates a sandbox for j and starts it.
func (s *suite) start(t testing.TB, j job) *run {
	t.Helper()
	spec, _ := s.command(t, j)
	return s.startIn(t, s.create(t, spec), j)
}

// startIn starts j in a sandbox that is there.
func (s *suite) startIn(t testing.TB, sb isolation.Sandbox, j job) *run {
	t.Helper()
	_, ps := s.command(t, j)
	r := &run{s: s, sb: sb, out: newCapture(), err: newCapture(), began: time.Now()}
	if !j.discard {
		if j.stdio.Stdout == nil {
			j.stdio.Stdout = r.out
		}
		if j.stdio.Stderr == nil {
			j.stdio.Stderr = r.err
		}
	}
	var err error
	if r.p, err = sb.Exec(s.ctx(t), ps, j.stdio); err != nil {
		t.Fatalf("Exec %s %.80q: %v", j.program, j.args, err)
	}
	return r
}

// run runs j to its end.
func (s *suite) run(t testing.TB, j job) (isolation.Exit, *run) {
	t.Helper()
	r := s.start(t, j)
	return r.wait(t), r
}

// wait waits for the end and checks what holds of every Exit.
func (r *run) wait(t testing.TB) isolation.Exit {
	t.Helper()
	e, err := r.p.Wait(r.s.ctx(t))
	if err != nil {
		t.Fatalf("Wait %s: %v (after %v)", r.p.ID(), err, time.Since(r.began))
	}
	sane(t, e, time.Since(r.began))
	r.out.noMore()
	r.err.noMore()
	t.Cleanup(func() {
		for name, c := range map[string]*capture{"stdout": r.out, "stderr": r.err} {
			if n := c.lateBytes(); n > 0 {
				t.Errorf("%d bytes were written to %s after Wait had returned", n, name)
			}
		}
	})
	return e
}

// details prints all of an Exit, which by itself prints one line for a person.
type details isolation.Exit

// sane checks what holds of every Exit.
func sane(t testing.TB, e isolation.Exit, elapsed time.Duration) {
	t.Helper()
	bad := func(format string, a ...any) {
		t.Helper()
		t.Errorf("exit %+v: "+format, append([]any{details(e)}, a...)...)
	}
	known := false
	for _, r := range isolation.Reasons() {
		known = known || e.Reason == r
	}
	if !known {
		bad("reason %q is not one", e.Reason)
	}
	switch e.Reason {
	case isolation.ReasonExited:
		if e.Code < 0 || e.Signal != 0 {
			bad("one that exited has a status and no signal")
		}
	case isolation.ReasonSignaled:
		if e.Code != -1 || !e.Signal.Valid() {
			bad("one that was signaled has code -1 and a signal")
		}
	}
	for _, o := range []isolation.Output{e.Stdout, e.Stderr} {
		if o.Bytes < 0 || o.Dropped < 0 || o.Dropped > o.Bytes {
			bad("of %d bytes %d were dropped", o.Bytes, o.Dropped)
		}
	}
	seen := map[isolation.Limit]bool{}
	for _, h := range e.LimitsHit {
		if h.Count < 1 || seen[h.Limit] {
			bad("limit %q is there twice, or hit %d times", h.Limit, h.Count)
		}
		seen[h.Limit] = true
	}
	u := e.Usage
	// Clocks of two sides may differ by their resolution.
	if u.Wall < 0 || u.CPU < 0 || u.Wall > elapsed+100*time.Millisecond {
		bad("wall time %v of %v that passed, CPU time %v", u.Wall, elapsed, u.CPU)
	}
	if u.PeakMemoryBytes < -1 || u.ReadBytes < 0 || u.WrittenBytes < 0 || e.Survivors < 0 {
		bad("a measure is negative")
	}
	if strings.ContainsAny(e.Detail, "\r\n") {
		bad("detail has more than one line")
	}
}

// succeeded fails unless the program exited with 0.
func succeeded(t testing.TB, e isolation.Exit, r *run) {
	t.Helper()
	if !e.Success() {
		t.Fatalf("%v, want status 0; stderr: %.500q", e, r.err.bytes())
	}
}

// ended fails unless the program ended for the reason.
func ended(t testing.TB, e isolation.Exit, want isolation.Reason) {
	t.Helper()
	if e.Reason != want {
		t.Fatalf("reason %q (%v), want %q", e.Reason, e, want)
	}
}

// hit fails unless the limit is among those that were hit.
func hit(t testing.TB, e isolation.Exit, l isolation.Limit, value int64) {
	t.Helper()
	for _, h := range e.LimitsHit {
		if h.Limit == l {
			if h.Value != value {
				t.Errorf("limit %s was hit at %d, want %d", l, h.Value, value)
			}
			return
		}
	}
	t.Errorf("limits hit are %v, want %s among them", e.LimitsHit, l)
}

// is fails unless err is of the class.
func is(t testing.TB, what string, err, class error) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error, want %v", what, class)
	}
	if got := isolation.Class(err); got != class {
		t.Errorf("%s: %v is of class %v, want %v", what, err, got, class)
	}
}

// notStarted fails unless err says that nothing of the program ran.
func notStarted(t testing.TB, what string, err error) {
	t.Helper()
	if got := isolation.OutcomeOf(err); got != isolation.NotStarted {
		t.Errorf("%s: outcome of %v is %s, want %s", what, err, got, isolation.NotStarted)
	}
}
