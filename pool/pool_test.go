package pool_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/pool"
)

var shell = isolation.Spec{Requirement: isolation.Shell}

func template(size int) pool.Template { return pool.Template{Spec: shell, Size: size} }

// open makes a pool over a driver in memory; the test's end closes it, and
// nothing may be left.
func open(t *testing.T, c pool.Config, faults mem.Faults) (*pool.Pool, *mem.Driver) {
	t.Helper()
	d := mem.New(mem.Config{})
	d.SetFaults(faults)
	c.Driver = d
	p, err := pool.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if sandboxes, programs := d.Live(); sandboxes != 0 || programs != 0 {
			t.Errorf("after Close, %d sandboxes and %d programs are left", sandboxes, programs)
		}
		if st := p.Stats(); st.Idle+st.Making+st.Removing+st.Out != 0 {
			t.Errorf("after Close: %+v", st)
		}
	})
	return p, d
}

func create(t *testing.T, p *pool.Pool, id string, spec isolation.Spec) isolation.Sandbox {
	t.Helper()
	sb, err := p.Create(t.Context(), id, spec)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func inner(sb isolation.Sandbox) isolation.Sandbox {
	for v := sb.(interface{ Unwrap() any }).Unwrap(); ; v = v.(interface{ Unwrap() any }).Unwrap() {
		if in, ok := v.(isolation.Sandbox); ok {
			return in
		}
	}
}

func conformance(c pool.Config) drivertest.Config {
	host := mem.NewHost()
	pooled := func(t testing.TB) (*pool.Pool, *mem.Driver) {
		c, d := c, mem.New(mem.Config{Host: host})
		c.Driver = d
		p, err := pool.New(c)
		if err != nil {
			t.Fatal(err)
		}
		return p, d
	}
	dc := drivertest.Config{
		New: func(t testing.TB) isolation.Driver {
			p, _ := pooled(t)
			return p
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			return isolation.Spec{Requirement: isolation.Arbitrary, Language: "mem"},
				isolation.ProcessSpec{Args: append([]string{string(p)}, args...)}, true
		},
		Lose: func(t testing.TB, d isolation.Driver, sb isolation.Sandbox, _ isolation.Process) {
			m, _ := isolation.As[*mem.Driver](d)
			if !m.Lose(inner(sb).ID(), "the test lost it") {
				t.Errorf("there is no sandbox %s", sb.ID())
			}
		},
	}
	dc.Host = func(t testing.TB, st drivertest.Story) (stdout, stderr io.Reader, kill func()) {
		p, d := pooled(t)
		return drivertest.HostHere(p, dc, st, func() {
			d.Crash()
			if err := p.Close(); err != nil { // its goroutines are this process's
				t.Errorf("Close: %v", err)
			}
		})
	}
	return dc
}

func TestConformance(t *testing.T) { drivertest.Run(t, conformance(pool.Config{Learn: 2})) }

func TestConformanceFrozen(t *testing.T) {
	drivertest.Run(t, conformance(pool.Config{Learn: 1, Freeze: true, Makers: 2}))
}

func TestConformanceWithoutShelves(t *testing.T) { drivertest.Run(t, conformance(pool.Config{})) }

// TestSingleUse: what was handed out once never comes back, and another tenant
// gets one that ran nothing but its warm-up.
func TestSingleUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, pool.Config{Templates: []pool.Template{template(2)}}, mem.Faults{})
		seen := map[string]bool{}
		for _, tenant := range []string{"a", "b", "a", "b"} {
			synctest.Wait() // the shelf is full
			if st := p.Stats(); st.Idle != 2 {
				t.Fatalf("%+v, want 2 ready", st)
			}
			spec := shell
			spec.Tenant = tenant
			sb := create(t, p, "job", spec)
			if id := inner(sb).ID(); seen[id] {
				t.Errorf("%s was handed out twice", id)
			} else {
				seen[id] = true
			}
			if err := sb.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if st := p.Stats(); st.Hits != 4 || st.Misses != 0 {
			t.Errorf("%+v, want 4 hits", st)
		}
	})
}

func TestMissIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, pool.Config{Templates: []pool.Template{template(1)}}, mem.Faults{})
		synctest.Wait()
		create(t, p, "a", shell)
		create(t, p, "b", isolation.Spec{Requirement: isolation.Python})
		other := shell
		other.Resources.MemoryBytes = 1 << 20
		create(t, p, "c", other)
		if st := p.Stats(); st.Hits != 1 || st.Misses != 2 || st.Out != 3 {
			t.Errorf("%+v, want 1 hit and 2 misses", st)
		}
	})
}

func TestLearnAndForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, d := open(t, pool.Config{Learn: 2, MaxShelves: 2, Forget: time.Minute}, mem.Faults{})
		for i, r := range []isolation.Requirement{isolation.Shell, isolation.Python, isolation.Arbitrary} {
			time.Sleep(time.Second)
			sb := create(t, p, "job", isolation.Spec{Requirement: r})
			if err := sb.Delete(t.Context()); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second)
			if st := p.Stats(); st.Idle != 2*min(i+1, 2) || len(st.Shelves) != min(i+1, 2) {
				t.Errorf("after %v: %+v", r, st)
			}
		}
		for _, s := range p.Stats().Shelves {
			if s.Spec.Requirement == isolation.Shell {
				t.Error("the least recently used shelf is there still")
			}
		}
		time.Sleep(2 * time.Minute)
		if n, _ := d.Live(); n != 0 || len(p.Stats().Shelves) != 0 {
			t.Errorf("%d sandboxes and %d shelves that nobody asked for", n, len(p.Stats().Shelves))
		}
	})
}

func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, pool.Config{Templates: []pool.Template{template(3)}, MaxAge: time.Minute}, mem.Faults{})
		time.Sleep(10*time.Minute + time.Second)
		st := p.Stats()
		if st.Aged != 30 || st.Idle != 3 || st.Shelves[0].Oldest > time.Minute {
			t.Errorf("%+v, want 30 removed for their age and 3 ready", st)
		}
	})
}

// TestBackOff: a driver that fails is asked less and less often, and the shelf
// fills when it works again.
func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var works atomic.Bool
		p, _ := open(t, pool.Config{Templates: []pool.Template{template(2)}}, mem.Faults{
			Create: func(context.Context, string, isolation.Spec) error {
				asked.Add(1)
				if works.Load() {
					return nil
				}
				return isolation.ErrUnavailable
			},
		})
		time.Sleep(10 * time.Minute)
		if n := asked.Load(); n < 10 || n > 40 {
			t.Errorf("asked %d times in 10 minutes", n)
		}
		if st := p.Stats(); st.Failures != asked.Load() || st.Shelves[0].Error == "" {
			t.Errorf("%+v after %d failures", st, asked.Load())
		}
		works.Store(true)
		time.Sleep(31 * time.Second)
		if st := p.Stats(); st.Idle != 2 || st.Shelves[0].Error != "" {
			t.Errorf("%+v, want 2 ready", st)
		}
	})
}

// TestSpoiled: what ended while it stood ready is not handed out.
func TestSpoiled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ids []string
		p, d := open(t, pool.Config{Templates: []pool.Template{template(2)}}, mem.Faults{
			Create: func(_ context.Context, id string, _ isolation.Spec) error {
				mu.Lock()
				defer mu.Unlock()
				ids = append(ids, id)
				return nil
			},
		})
		synctest.Wait()
		mu.Lock()
		for _, id := range ids {
			d.Lose(id, "the test lost it")
		}
		mu.Unlock()
		sb := create(t, p, "job", shell)
		if st, err := sb.State(t.Context()); err != nil || st.Status != isolation.StatusCreated || st.ID != "job" {
			t.Errorf("%+v, %v", st, err)
		}
		// The keeper may have been faster with a new one than we with the second.
		if st := p.Stats(); st.Spoiled < 1 || st.Hits+st.Misses != 1 {
			t.Errorf("%+v, want what was spoiled counted, and one that was handed out", st)
		}
	})
}

func TestWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tpl := template(1)
		tpl.Warm = []isolation.ProcessSpec{{Args: []string{"exit", "0"}}}
		bad := pool.Template{Spec: isolation.Spec{Requirement: isolation.Python}, Size: 1, Warm: []isolation.ProcessSpec{{Args: []string{"exit", "3"}}}}
		p, d := open(t, pool.Config{Templates: []pool.Template{tpl, bad}}, mem.Faults{})
		synctest.Wait()
		st := p.Stats()
		if st.Idle != 1 || st.Failures != 1 {
			t.Errorf("%+v, want one ready and one failure", st)
		}
		for _, s := range st.Shelves {
			if s.Spec.Requirement == isolation.Python && !strings.Contains(s.Error, "exited with status 3") {
				t.Errorf("error %q does not tell how the warm-up ended", s.Error)
			}
		}
		if n, _ := d.Live(); n != 1 {
			t.Errorf("%d sandboxes, want 1: a failed one is removed", n)
		}
	})
}

// TestLearnWarm: what is made ahead because it was asked for runs the warm-up as far
// as it can, and stands ready in any case, unless the warm-up was the end of it.
func TestLearnWarm(t *testing.T) {
	warm := func(args ...string) isolation.ProcessSpec { return isolation.ProcessSpec{Args: args} }
	for name, x := range map[string]struct {
		warm []isolation.ProcessSpec
		ran  int
	}{
		"succeeds": {[]isolation.ProcessSpec{warm("exit", "0"), warm("exit", "0")}, 2},
		"fails":    {[]isolation.ProcessSpec{warm("exit", "3"), warm("exit", "0")}, 1},
		"missing":  {[]isolation.ProcessSpec{warm("no-such-program"), warm("exit", "0")}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ran atomic.Int64
				p, _ := open(t, pool.Config{Learn: 1, LearnWarm: x.warm}, mem.Faults{
					Exec: func(context.Context, string, isolation.ProcessSpec) error { ran.Add(1); return nil },
				})
				create(t, p, "first", shell)
				synctest.Wait()
				if st := p.Stats(); st.Idle != 1 || st.Failures != 0 || ran.Load() != int64(x.ran) {
					t.Errorf("%+v, %d programs were run, want one ready and %d programs", st, ran.Load(), x.ran)
				}
			})
		})
	}
	t.Run("breaks it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, d := open(t, pool.Config{Learn: 1, LearnWarm: []isolation.ProcessSpec{warm("exit", "0")}}, mem.Faults{
				Exec: func(context.Context, string, isolation.ProcessSpec) error { return isolation.ErrUnavailable },
			})
			create(t, p, "first", shell)
			synctest.Wait()
			if st := p.Stats(); st.Idle != 0 || st.Failures == 0 {
				t.Errorf("%+v, want a failure", st)
			}
			if n, _ := d.Live(); n != 1 {
				t.Errorf("%d sandboxes, want only the one that was asked for", n)
			}
		})
	})
}

// TestRefillAfter: a place is filled when what was claimed has had its time, unless
// nothing else is ready.
func TestRefillAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const after = time.Second
		p, _ := open(t, pool.Config{Templates: []pool.Template{template(2)}, RefillAfter: after}, mem.Faults{})
		idle := func(want int) {
			t.Helper()
			synctest.Wait()
			if st := p.Stats(); st.Idle != want {
				t.Errorf("%d stand ready, want %d", st.Idle, want)
			}
		}
		idle(2)
		create(t, p, "a", shell)
		idle(1)
		time.Sleep(after - time.Millisecond)
		idle(1)
		time.Sleep(2 * time.Millisecond)
		idle(2)
		create(t, p, "b", shell)
		idle(1)
		create(t, p, "c", shell) // the last one: now it is made at once
		synctest.Wait()
		if st := p.Stats(); st.Idle == 0 || st.Hits != 3 {
			t.Errorf("%+v, want another one ready", st)
		}
	})
}

// TestPrepareIsRefused by a driver that cannot.
func TestPrepareIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tpl := template(1)
		tpl.Prepare = "python"
		p, d := open(t, pool.Config{Templates: []pool.Template{tpl}}, mem.Faults{})
		synctest.Wait()
		if st := p.Stats(); st.Idle != 0 || !strings.Contains(st.Shelves[0].Error, "ability prepare") {
			t.Errorf("%+v", st)
		}
		if n, _ := d.Live(); n != 0 {
			t.Errorf("%d sandboxes are left", n)
		}
	})
}

// TestRemovalIsNotWaitedFor: Delete of a sandbox that rests returns although
// the driver's does not, and frees the id; Close waits.
func TestRemovalIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		p, d := open(t, pool.Config{}, mem.Faults{Delete: func(ctx context.Context, _ string) error {
			select {
			case <-slow:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
		for range 3 {
			sb := create(t, p, "job", shell)
			if err := sb.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := sb.State(t.Context()); !errors.Is(err, isolation.ErrNotFound) {
				t.Errorf("State after Delete: %v", err)
			}
			if err := sb.Delete(t.Context()); err != nil {
				t.Errorf("second Delete: %v", err)
			}
		}
		if n, _ := d.Live(); n != 3 {
			t.Errorf("%d sandboxes, want 3 whose removal goes on", n)
		}
		time.AfterFunc(time.Second, func() { close(slow) })
	})
}

// TestRunningIsWaitedFor: Delete returns when the programs have ended.
func TestRunningIsWaitedFor(t *testing.T) {
	p, _ := open(t, pool.Config{Templates: []pool.Template{template(1)}}, mem.Faults{})
	sb := create(t, p, "job", shell)
	pr, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sleep", "3600000"}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	if exit, err := pr.Wait(now); err != nil || exit.Reason != isolation.ReasonCanceled {
		t.Errorf("%v, %v, want canceled by the time that Delete has returned", exit, err)
	}
}

// TestMountsAreMade: a directory of the host is never in a sandbox that was
// made ahead.
func TestMountsAreMade(t *testing.T) {
	spec := isolation.Spec{Requirement: isolation.Shell, Mounts: []isolation.Mount{{Source: "/srv", Destination: "/srv"}}}
	if _, err := pool.New(pool.Config{Driver: mem.New(mem.Config{}), Templates: []pool.Template{{Spec: spec, Size: 1}}}); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a template with mounts: %v", err)
	}
	d := mem.New(mem.Config{Features: func(f *isolation.Features) {
		f.Options = append(f.Options, isolation.OptionMounts, isolation.OptionWritable)
	}})
	p, err := pool.New(pool.Config{Driver: d, Learn: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	create(t, p, "a", spec)
	if st := p.Stats(); len(st.Shelves) != 0 {
		t.Errorf("%+v, want no shelf", st)
	}
}

// TestImagesOfNow: a sandbox that stands ready for an image's name is not handed
// out when the name has come to mean another image.
func TestImagesOfNow(t *testing.T) {
	image := func(s string) isolation.Root { return isolation.Root{Image: s} }
	spec := isolation.Spec{Requirement: isolation.Shell, Root: image("tool:1")}
	features := func(f *isolation.Features) { f.Options = append(f.Options, isolation.OptionImage) }
	byName, err := pool.New(pool.Config{Driver: mem.New(mem.Config{Features: features}), Learn: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer byName.Close()
	create(t, byName, "a", spec)
	if st := byName.Stats(); len(st.Shelves) != 0 {
		t.Errorf("%+v, want no shelf for a name", st)
	}
	var means atomic.Value
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	means.Store(digest("a"))
	r := &recorder{Driver: mem.New(mem.Config{Features: features})}
	p, err := pool.New(pool.Config{
		Driver: r, Templates: []pool.Template{{Spec: spec, Size: 1}},
		Resolve: func(_ context.Context, s isolation.Spec) (isolation.Spec, error) {
			s.Root.Image = means.Load().(string)
			return s, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for p.Stats().Idle == 0 {
		time.Sleep(time.Millisecond)
	}
	create(t, p, "ready", spec)
	if st := p.Stats(); st.Hits != 1 {
		t.Errorf("%+v, want a hit", st)
	}
	means.Store(digest("b"))
	create(t, p, "new", spec)
	if st := p.Stats(); st.Hits != 1 {
		t.Errorf("%+v, want no second hit", st)
	}
	// From now on they are made ahead of the new image, and of the old no more.
	for p.Stats().Idle == 0 {
		time.Sleep(time.Millisecond)
	}
	create(t, p, "followed", spec)
	if st := p.Stats(); st.Hits != 2 || len(st.Shelves) != 1 {
		t.Errorf("%+v, want a second hit, of one shelf", st)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.images[0] != digest("a") || !slices.Contains(r.images, digest("b")) {
		t.Errorf("made of %q", r.images)
	}
}

// recorder notes of which images sandboxes are made.
type recorder struct {
	isolation.Driver
	mu     sync.Mutex
	images []string // guarded by mu
}

func (r *recorder) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	r.mu.Lock()
	r.images = append(r.images, spec.Root.Image)
	r.mu.Unlock()
	return r.Driver.Create(ctx, id, spec)
}

func TestConfig(t *testing.T) {
	d := mem.New(mem.Config{})
	for name, c := range map[string]pool.Config{
		"no driver": {},
		"negative":  {Driver: d, Learn: -1},
		"size":      {Driver: d, Templates: []pool.Template{template(0)}},
		"too many":  {Driver: d, MaxIdle: 2, Templates: []pool.Template{template(3)}},
		"twice":     {Driver: d, Templates: []pool.Template{template(1), template(1)}},
		"spec":      {Driver: d, Templates: []pool.Template{{Size: 1}}},
		"warm":      {Driver: d, Templates: []pool.Template{{Spec: shell, Size: 1, Warm: []isolation.ProcessSpec{{}}}}},
	} {
		if p, err := pool.New(c); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, d := open(t, pool.Config{Templates: []pool.Template{template(2)}}, mem.Faults{})
		synctest.Wait()
		made := p.Stats().Made
		if err := p.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st := p.Stats(); st.Made != made+2 || st.Idle != 2 {
			t.Errorf("%+v, want 2 new ones", st)
		}
		if n, _ := d.Live(); n != 2 {
			t.Errorf("%d sandboxes, want 2", n)
		}
	})
}

// TestCloseDuringCreate: a Create that is under way when the pool is closed
// fails, and leaves nothing.
func TestCloseDuringCreate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := open(t, pool.Config{}, mem.Faults{Create: func(context.Context, string, isolation.Spec) error {
			time.Sleep(time.Second)
			return nil
		}})
		failed := make(chan error)
		go func() {
			_, err := p.Create(context.Background(), "job", shell)
			failed <- err
		}()
		synctest.Wait()
		go p.Close()
		if err := <-failed; !errors.Is(err, isolation.ErrFailedPrecondition) || isolation.OutcomeOf(err) != isolation.NotStarted {
			t.Errorf("%v", err)
		}
	})
}

func BenchmarkPool(b *testing.B) { drivertest.Benchmark(b, conformance(pool.Config{Learn: 4})) }

// TestDetached: what is to outlive the pool is made ahead where that is wanted, is
// recovered by the id that it has with the driver, and what stood ready when a process
// was killed is told by its id.
func TestDetached(t *testing.T) {
	host := mem.NewHost()
	d := mem.New(mem.Config{Host: host})
	spec := isolation.Spec{Requirement: isolation.Shell, Detached: true}
	p, err := pool.New(pool.Config{Driver: d, Detached: true, Templates: []pool.Template{{Spec: spec, Size: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	full := func() bool { return p.Stats().Idle == 2 }
	for range 1000 {
		if full() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	sb := create(t, p, "mine", spec)
	id := sb.(interface{ RecoveryID() string }).RecoveryID()
	if st := p.Stats(); st.Hits != 1 || id == "mine" || !pool.MadeAhead(id) || sb.ID() != "mine" {
		t.Errorf("%+v, %s is recovered as %s", st, sb.ID(), id)
	}
	// Nothing of what stands ready is handed out, or left, when it closes.
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	next, err := pool.New(pool.Config{Driver: mem.New(mem.Config{Host: host}), Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	r, ok := isolation.As[isolation.Recoverer](isolation.Driver(next))
	if !ok {
		t.Fatal("it recovers nothing")
	}
	list, err := r.Recoverable(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != id {
		t.Errorf("%+v %v", list, err)
	}
	again, err := r.Recover(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}
