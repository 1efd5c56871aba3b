package session

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// runner is an engine whose programs do what the test says.
type runner func(context.Context, engine.Request) (*engine.Result, error)

func (r runner) Run(ctx context.Context, q engine.Request) (*engine.Result, error) { return r(ctx, q) }

func openRuns(t *testing.T, c RunsConfig) *Runs {
	t.Helper()
	rs, err := OpenRuns(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		rs.Close(ctx)
	})
	return rs
}

var theRequest = engine.Request{Spec: isolation.Spec{Requirement: isolation.Arbitrary}}

// untilCanceled writes a line and runs until somebody ends it.
func untilCanceled(ctx context.Context, q engine.Request) (*engine.Result, error) {
	fmt.Fprintln(q.Stdout, "begun")
	<-ctx.Done()
	return &engine.Result{ID: q.ID, Exit: isolation.Exit{Reason: isolation.ReasonCanceled}}, nil
}

// TestRunsAfterACrash: what was acknowledged is known to the next process, and is not
// begun again by the same key; of one that ran then nobody knows how it ended.
func TestRunsAfterACrash(t *testing.T) {
	c := RunsConfig{Engine: runner(untilCanceled), Dir: t.TempDir()}
	first := openRuns(t, c)
	r, again, err := first.Start(t.Context(), "a", "k", "digest", theRequest, false, false)
	if err != nil || again {
		t.Fatal(again, err)
	}
	next := openRuns(t, c) // the first is not closed: it was killed
	lost, again, err := next.Start(t.Context(), "a", "k", "digest", theRequest, false, false)
	if err != nil || !again || lost.ID() != r.ID() {
		t.Fatalf("it runs again: %v %v", again, err)
	}
	_, err = lost.Wait(t.Context())
	if !errors.Is(err, isolation.ErrUnavailable) || isolation.OutcomeOf(err) != isolation.OutcomeUnknown {
		t.Errorf("%v", err)
	}
	if _, err := next.Get("b", r.ID()); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	if err := lost.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if last := openRuns(t, c); len(last.List("a")) != 0 {
		t.Error("it was deleted, and is there")
	}
}

// TestRunsClose: runs have some time, then they are ended, and their results are
// written down.
func TestRunsClose(t *testing.T) {
	c := RunsConfig{Engine: runner(untilCanceled), Dir: t.TempDir()}
	rs := openRuns(t, c)
	r, _, err := rs.Start(t.Context(), "a", "", "", theRequest, false, false)
	if err != nil {
		t.Fatal(err)
	}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	rs.Close(now)
	if _, _, err := rs.Start(t.Context(), "a", "", "", theRequest, false, false); !errors.Is(err, isolation.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	again, err := openRuns(t, c).Get("a", r.ID())
	if err != nil {
		t.Fatal(err)
	}
	if res, err := again.Wait(t.Context()); err != nil || res.Exit.Reason != isolation.ReasonCanceled {
		t.Errorf("%+v %v", res, err)
	}
	if i := again.Info(); i.Stdout.To != 6 {
		t.Errorf("its output: %+v", i)
	}
}

func TestRunsAreBounded(t *testing.T) {
	now := time.Now()
	c := RunsConfig{Engine: runner(untilCanceled), Dir: t.TempDir(), MaxLive: 2, MaxEnded: 2, Retain: time.Minute, Now: func() time.Time { return now }}
	rs := openRuns(t, c)
	var list []*Run
	for range 2 {
		r, _, err := rs.Start(t.Context(), "a", "", "", theRequest, false, false)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	if _, _, err := rs.Start(t.Context(), "a", "", "", theRequest, false, false); !errors.Is(err, isolation.ErrResourceExhausted) {
		t.Errorf("%v", err)
	}
	if _, _, err := rs.Start(t.Context(), "b", "", "", theRequest, false, false); err != nil {
		t.Errorf("another tenant's: %v", err)
	}
	for range 3 {
		list[len(list)-1].Cancel()
		<-list[len(list)-1].done
		r, _, err := rs.Start(t.Context(), "a", "", "", theRequest, false, false)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	rs.Retire()
	if n := len(rs.List("a")); n != 4 { // two under way, two that ended
		t.Errorf("%d are known", n)
	}
	now = now.Add(2 * time.Minute)
	rs.Retire()
	if n := len(rs.List("a")); n != 2 {
		t.Errorf("%d are known later", n)
	}
}

// TestRunsOutputIsBounded: the output of runs that have ended takes so much of the disk
// and no more.
func TestRunsOutputIsBounded(t *testing.T) {
	write := func(_ context.Context, q engine.Request) (*engine.Result, error) {
		_, err := q.Stderr.Write(make([]byte, 1000))
		return &engine.Result{ID: q.ID}, err
	}
	rs := openRuns(t, RunsConfig{Engine: runner(write), Dir: t.TempDir(), MaxBytes: 2500})
	var last *Run
	for range 4 {
		r, _, err := rs.Start(t.Context(), "a", "", "", theRequest, false, false)
		if err != nil {
			t.Fatal(err)
		}
		<-r.done
		last = r
	}
	rs.Retire()
	if list := rs.List("a"); len(list) != 2 || list[1].ID() != last.ID() {
		t.Errorf("%d are known", len(list))
	}
}

// TestRunsThatLast: whatever way this process ends, a run that lasts goes on, and has one
// result, with the beginning and the end of what it wrote. One whose sandbox is lost
// meanwhile says so.
func TestRunsThatLast(t *testing.T) {
	for _, how := range []string{"close", "crash"} {
		t.Run(how, func(t *testing.T) {
			p := newPlace(t)
			first := p.open(t)
			ended := make(chan string, 10)
			config := func(l *life) RunsConfig {
				return RunsConfig{Engine: l.engine, Lasting: l.engine, Dir: filepath.Join(p.dir, ".runs"), Ended: func(tenant, id string, res *engine.Result, _ error) {
					ended <- fmt.Sprint(tenant, " ", id, " ", res != nil)
				}, Begun: func(context.Context, engine.Request) error { return nil }}
			}
			runs := openRuns(t, config(first))
			begin := func(rs *Runs, key string, args ...string) *Run {
				t.Helper()
				q := theRequest
				q.Spec.Tenant, q.Process.Args, q.Capture = "a/x", args, engine.Capture{Head: 4, Tail: 6}
				r, _, err := rs.Start(t.Context(), "a", key, "digest", q, false, true)
				if err != nil || !r.Info().Durable {
					t.Fatal(err)
				}
				return r
			}
			waits := begin(runs, "k", "ready", "100000")
			over := begin(runs, "", "flood", "1000")
			lost := begin(runs, "", "ready", "100000")
			for i := 0; waits.Info().Stdout.To < 6 || lost.Info().Stdout.To < 6 || over.Info().Running; i++ {
				if i > 3000 {
					t.Fatal("no output")
				}
				time.Sleep(10 * time.Millisecond)
			}
			if res, err := over.Wait(t.Context()); err != nil || len(res.Stdout.Head) != 4 || len(res.Stdout.Tail) != 6 || res.Stdout.Omitted != 990 || !res.Truncated || res.StdoutBytes != 1000 {
				t.Errorf("%+v %v", res, err)
			}
			now, cancel := context.WithCancel(t.Context())
			cancel()
			if how == "crash" {
				runs.cancel(errLeft) // first: who waits must not see that the driver is gone, as nobody would
				first.driver.Crash()
				runs.wg.Wait()
				first.crash(t)
			} else {
				runs.Close(now)
				first.end(t)
			}
			second := p.open(t)
			q := theRequest
			q.ID, q.Spec.Tenant, q.Spec.Detached = lost.ID(), "a/x", true
			sb, err := second.engine.RecoverOne(t.Context(), "mem", q)
			if err == nil {
				err = sb.Delete(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			next := openRuns(t, config(second))
			if tenant, id, ok := next.Owns(waits.ID()); !ok || tenant != "a" || id != waits.ID() {
				t.Errorf("%s %s %v", tenant, id, ok)
			}
			again := begin(next, "k", "ready", "100000")
			if again.ID() != waits.ID() {
				t.Errorf("it began again by its key: %s", again.ID())
			}
			again.Cancel()
			if res, err := again.Wait(t.Context()); err != nil || res.Exit.Reason != isolation.ReasonCanceled || res.Stdout.String() != "ready\n" || res.ID != waits.ID() {
				t.Errorf("%+v %v", res, err)
			}
			gone, err := next.Get("a", lost.ID())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := gone.Wait(t.Context()); !errors.Is(err, isolation.ErrUnavailable) || isolation.OutcomeOf(err) != isolation.OutcomeUnknown {
				t.Errorf("lost: %v", err)
			}
			got := map[string]bool{}
			for range 3 {
				got[<-ended] = true
			}
			for _, want := range []string{"a " + over.ID() + " true", "a " + waits.ID() + " true", "a " + lost.ID() + " false"} {
				if !got[want] {
					t.Errorf("nobody was told %q: %v", want, got)
				}
			}
			if list, err := second.recoverable(t); err != nil || len(list) != 0 {
				t.Errorf("left: %v %v", list, err)
			}
		})
	}
}
