package session

import (
	"context"
	"errors"
	"fmt"
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
	r, again, err := first.Start("a", "k", "digest", theRequest, false)
	if err != nil || again {
		t.Fatal(again, err)
	}
	next := openRuns(t, c) // the first is not closed: it was killed
	lost, again, err := next.Start("a", "k", "digest", theRequest, false)
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
	r, _, err := rs.Start("a", "", "", theRequest, false)
	if err != nil {
		t.Fatal(err)
	}
	now, cancel := context.WithCancel(t.Context())
	cancel()
	rs.Close(now)
	if _, _, err := rs.Start("a", "", "", theRequest, false); !errors.Is(err, isolation.ErrUnavailable) {
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
		r, _, err := rs.Start("a", "", "", theRequest, false)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	if _, _, err := rs.Start("a", "", "", theRequest, false); !errors.Is(err, isolation.ErrResourceExhausted) {
		t.Errorf("%v", err)
	}
	if _, _, err := rs.Start("b", "", "", theRequest, false); err != nil {
		t.Errorf("another tenant's: %v", err)
	}
	for range 3 {
		list[len(list)-1].Cancel()
		<-list[len(list)-1].done
		r, _, err := rs.Start("a", "", "", theRequest, false)
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
		r, _, err := rs.Start("a", "", "", theRequest, false)
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
