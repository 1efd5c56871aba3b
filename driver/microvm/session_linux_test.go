package microvm_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation"
)

// TestRecoverPaused: what was paused when its host left it is paused for the next
// one. A copy of it was not, and goes on.
func TestRecoverPaused(t *testing.T) {
	c := config(t)
	if c.Engine != "" {
		t.Skip("machines of " + c.Engine + " end with their maker")
	}
	c, _ = sessions(t, c)
	first := newDriver(t, c)
	sb, err := first.Create(t.Context(), "kept", isolation.Spec{Requirement: isolation.Shell, Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{ExecID: "counter", Args: []string{"python3", "-c", counter}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	secret, n := counted(t, sb, 3)
	f, _ := isolation.As[isolation.Forker](sb)
	if _, err := f.Fork(t.Context(), []string{"kept-copy"}); err != nil {
		t.Fatal(err)
	}
	pauser, _ := isolation.As[isolation.Pauser](sb)
	if err := pauser.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	standsStill(t, p.PID()) // with no host

	second := newDriver(t, c)
	r, ok := isolation.As[isolation.Recoverer](second)
	if !ok {
		t.Fatal("the driver recovers nothing")
	}
	list, err := r.Recoverable(t.Context())
	if err != nil || len(list) != 2 || list[0].ID != "kept" || list[1].ID != "kept-copy" || list[0].Err != nil || list[1].Err != nil {
		t.Fatalf("%+v, %v", list, err)
	}
	for i, id := range []string{"kept", "kept-copy"} {
		sb, err := r.Recover(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := sb.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		want := []isolation.Status{isolation.StatusPaused, isolation.StatusRunning}[i]
		if st, err := sb.State(t.Context()); err != nil || st.Status != want || len(st.Execs) != 1 {
			t.Errorf("%s: %+v, %v, want it %s", id, st, err, want)
		}
		if i == 0 {
			pauser, _ := isolation.As[isolation.Pauser](sb)
			if err := pauser.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if who, _ := counted(t, sb, n); who != secret {
			t.Errorf("%s: another process counts", id)
		}
		a, ok := isolation.As[isolation.Attacher](sb)
		if !ok {
			t.Fatal("it cannot be attached to")
		}
		p, err := a.Attach(t.Context(), "counter", isolation.Offsets{}, isolation.Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(t.Context(), isolation.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(t.Context()); err != nil || e.Signal != isolation.SIGKILL {
			t.Errorf("%s: the counter was killed: %v, %v", id, e, err)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(c.SessionDir, "qemu")); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v are written down, want two", entries, err)
	}
}
