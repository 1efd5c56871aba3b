package microvm_test

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// TestPausedClock: a machine that goes on after a pause has the right time.
func TestPausedClock(t *testing.T) {
	d := newDriver(t, config(t))
	sb := create(t, d, "pause-clock", isolation.Spec{})
	p, ok := isolation.As[isolation.Pauser](sb)
	if !ok {
		t.Fatal("it cannot be paused")
	}
	for range 2 {
		if err := p.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		if err := p.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		out, _ := sh(t, sb, "date +%s.%N")
		at, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		if is := time.Unix(0, int64(at*1e9)); err != nil || is.Before(before.Add(-time.Second)) || is.After(time.Now().Add(time.Second)) {
			t.Errorf("its time is %v, the host's %v", is, before)
		}
	}
}

// TestPausedUsesNothing: a program that computes stops, keeps what it has, and
// goes on.
func TestPausedUsesNothing(t *testing.T) {
	d := newDriver(t, config(t))
	sb := create(t, d, "pause-cpu", isolation.Spec{})
	p, _ := isolation.As[isolation.Pauser](sb)
	var out bytes.Buffer
	pr, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo $i"}}, isolation.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	standsStill(t, pr.PID())
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := pr.Wait(t.Context()); err != nil || !e.Success() || out.String() != "60000\n" {
		t.Errorf("%v, %v, %q", e, err, out.String())
	}
}
