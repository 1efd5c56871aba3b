package none_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/none"
)

// engine is one engine under test: programs by what they do.
type engine struct {
	new  func(t testing.TB) isolation.Driver
	spec func(program string) isolation.Spec
	args func(program string) []string
}

// The programs: "ok" exits 0, "fail" 3, "echo" copies stdin to stdout, "block"
// says "up" and ends only when it is ended.
var programs = map[string]none.Func{
	"ok":   func(context.Context, *none.Call) int { return 0 },
	"fail": func(context.Context, *none.Call) int { return 3 },
	"echo": func(_ context.Context, c *none.Call) int {
		if _, err := io.Copy(c.Stdout, c.Stdin); err != nil {
			return 1
		}
		return 0
	},
	"block": func(ctx context.Context, c *none.Call) int {
		fmt.Fprint(c.Stdout, "up")
		<-ctx.Done()
		return 0
	},
}

func init() {
	for name, f := range programs {
		helpers[name] = func(args []string) int { return f(context.Background(), stdCall(args)) }
	}
	helpers["block"] = func([]string) int { fmt.Print("up"); time.Sleep(time.Hour); return 0 }
}

func eachEngine(t *testing.T, f func(t *testing.T, e engine)) {
	open := func(t testing.TB, d isolation.Driver, err error) isolation.Driver {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		return d
	}
	native := func(c none.Config) engine {
		return engine{
			func(t testing.TB) isolation.Driver { d, err := none.New(c); return open(t, d, err) },
			func(string) isolation.Spec { return isolation.Spec{Requirement: isolation.NativeTrusted} },
			func(p string) []string { return helper(p) },
		}
	}
	for name, e := range map[string]engine{
		"process":       native(none.Config{}),
		"process-plain": native(none.Config{NoCgroup: true}),
		"func": {
			func(t testing.TB) isolation.Driver {
				d, err := none.NewFunc(none.FuncConfig{Funcs: programs})
				return open(t, d, err)
			},
			func(p string) isolation.Spec {
				return isolation.Spec{Requirement: isolation.NativeTrusted, Func: p}
			},
			func(p string) []string { return []string{p} },
		},
	} {
		t.Run(name, func(t *testing.T) { f(t, e) })
	}
}

func (e engine) create(t testing.TB, d isolation.Driver, id, program string) isolation.Sandbox {
	t.Helper()
	sb, err := d.Create(ctxOf(t), id, e.spec(program))
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// up is a writer that tells when something was written.
type up struct {
	once sync.Once
	c    chan struct{}
}

func newUp() *up { return &up{c: make(chan struct{})} }

func (u *up) Write(b []byte) (int, error) { u.once.Do(func() { close(u.c) }); return len(b), nil }

// block starts the program that blocks, and waits until it runs.
func (e engine) block(t testing.TB, sb isolation.Sandbox, id string) isolation.Process {
	t.Helper()
	u := newUp()
	p, err := sb.Exec(ctxOf(t), isolation.ProcessSpec{ExecID: id, Args: e.args("block")}, isolation.Stdio{Stdout: u})
	if err != nil {
		t.Fatal(err)
	}
	<-u.c
	return p
}

func TestLifeCycle(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		ctx := ctxOf(t)
		d := e.new(t)
		f, err := d.Probe(ctx)
		if err != nil || f.Engine != d.Name() || f.Tier != isolation.TierNone || !f.CanRun(isolation.NativeTrusted) || len(f.Runs) != 1 {
			t.Fatalf("Probe = %+v, %v", f, err)
		}
		for _, x := range f.Enforces {
			if x.Enforced == (x.By == "") || x.Enforced != (x.Reason == "") {
				t.Errorf("%+v says not by what, or not why not", x)
			}
		}
		if _, err := d.Create(ctx, "../x", e.spec("ok")); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("bad id: %v", err)
		}
		sb := e.create(t, d, "a", "block")
		if _, err := d.Create(ctx, "a", e.spec("ok")); !errors.Is(err, isolation.ErrAlreadyExists) {
			t.Errorf("second of the same id: %v", err)
		}
		if st, err := sb.State(ctx); err != nil || st.Status != isolation.StatusCreated || st.ID != "a" || st.Created.IsZero() {
			t.Errorf("State = %+v, %v", st, err)
		}
		p := e.block(t, sb, "one")
		q := e.block(t, sb, "")
		if p.ID() != "one" || q.ID() == "" {
			t.Errorf("ids %q and %q", p.ID(), q.ID())
		}
		if st, err := sb.State(ctx); err != nil || st.Status != isolation.StatusRunning || !slices.Contains(st.Execs, "one") || len(st.Execs) != 2 || !slices.IsSorted(st.Execs) {
			t.Errorf("State = %+v, %v", st, err)
		}
		if _, err := sb.Exec(ctx, isolation.ProcessSpec{ExecID: "one", Args: e.args("ok")}, isolation.Stdio{}); !errors.Is(err, isolation.ErrAlreadyExists) {
			t.Errorf("second of the same ExecID: %v", err)
		}
		short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		if _, err := p.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait with a deadline: %v", err)
		}
		cancel()
		if _, err := sb.Exec(short, isolation.ProcessSpec{Args: e.args("ok")}, isolation.Stdio{}); !errors.Is(err, context.DeadlineExceeded) || isolation.OutcomeOf(err) != isolation.NotStarted {
			t.Errorf("Exec with an ended context: %v", err)
		}
		if _, err := d.Create(short, "b", e.spec("ok")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Create with an ended context: %v", err)
		}
		if err := p.Kill(ctx, 99); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("Kill by no signal: %v", err)
		}
		if err := p.Kill(ctx, isolation.SIGTERM); err != nil {
			t.Error(err)
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if x := wait(t, p); x.Reason != isolation.ReasonSignaled || x.Signal != isolation.SIGTERM || x.Code != -1 {
					t.Errorf("%+v, want SIGTERM", x)
				}
			})
		}
		wg.Wait()
		if err := p.Kill(ctx, isolation.SIGTERM); err != nil {
			t.Errorf("Kill of an ended process: %v", err)
		}
		for range 5 {
			wg.Go(func() { remove(t, sb) })
		}
		wg.Wait()
		if x := wait(t, q); x.Reason != isolation.ReasonCanceled || x.Code != -1 {
			t.Errorf("%+v, want canceled", x)
		}
		if _, err := sb.State(ctx); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("State after Delete: %v", err)
		}
		if _, err := sb.Exec(ctx, isolation.ProcessSpec{Args: e.args("ok")}, isolation.Stdio{}); !errors.Is(err, isolation.ErrNotFound) || isolation.OutcomeOf(err) != isolation.NotStarted {
			t.Errorf("Exec after Delete: %v", err)
		}
		e.create(t, d, "a", "block") // the id is free again
		e.block(t, e.create(t, d, "c", "block"), "")
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if _, err := d.Create(ctx, "z", e.spec("ok")); !errors.Is(err, isolation.ErrFailedPrecondition) {
			t.Errorf("Create after Close: %v", err)
		}
	})
}

// TestDeleteWithEndedContext: the call ends, the deletion goes on.
func TestDeleteWithEndedContext(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		d := e.new(t)
		sb := e.create(t, d, "a", "block")
		p := e.block(t, sb, "")
		ended, cancel := context.WithCancel(ctxOf(t))
		cancel()
		if err := sb.Delete(ended); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Delete: %v", err)
		}
		if x := wait(t, p); x.Reason != isolation.ReasonCanceled {
			t.Errorf("%+v, want canceled", x)
		}
		remove(t, sb)
	})
}

// TestFirstCauseWins: what ended it is told, whatever came right after.
func TestFirstCauseWins(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		d := e.new(t)
		for range 20 {
			sb := e.create(t, d, "a", "block")
			p := e.block(t, sb, "")
			if err := p.Kill(ctxOf(t), isolation.SIGKILL); err != nil {
				t.Fatal(err)
			}
			remove(t, sb)
			if x := wait(t, p); x.Reason != isolation.ReasonSignaled || x.Signal != isolation.SIGKILL {
				t.Fatalf("%+v, want SIGKILL", x)
			}
		}
	})
}

func TestHammer(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		d := e.new(t)
		ctx := ctxOf(t)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 12 {
					name := []string{"ok", "fail", "echo", "block"}[rand.IntN(4)]
					sb, err := d.Create(ctx, "h"+strconv.Itoa(w)+"-"+strconv.Itoa(i), e.spec(name))
					if err != nil {
						t.Error(err)
						return
					}
					var out bytes.Buffer
					p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: e.args(name), Limits: isolation.Limits{Wall: time.Minute}},
						isolation.Stdio{Stdin: bytes.NewReader(bytes.Repeat([]byte("x"), 100_000)), Stdout: &out})
					if err != nil {
						t.Error(err)
						return
					}
					switch {
					case name != "block":
						x, err := p.Wait(ctx)
						want := map[string]int{"fail": 3}[name]
						if err != nil || x.Reason != isolation.ReasonExited || x.Code != want || name == "echo" && out.Len() != 100_000 {
							t.Errorf("%s: %+v, %v, %d bytes", name, x, err, out.Len())
						}
					case rand.IntN(2) == 0:
						_ = p.Kill(ctx, isolation.SIGKILL)
					default:
						go d.Probe(ctx)
					}
					if err := sb.Delete(ctx); err != nil {
						t.Error(err)
					}
					if x, err := p.Wait(ctx); err != nil || name == "block" && x.Reason != isolation.ReasonCanceled && x.Reason != isolation.ReasonSignaled {
						t.Errorf("%s: %+v, %v", name, x, err)
					}
				}
			})
		}
		wg.Wait()
	})
}
