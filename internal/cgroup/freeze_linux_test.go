package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestFreezeAll stops processes that come and go, lets one of them die, and kills the rest
// while it stands still.
func TestFreezeAll(t *testing.T) {
	tree := Find()
	if err := tree.Freezes(); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" && os.Getuid() == 0 {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: " + err.Error())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g, err := tree.Create(fmt.Sprintf("axo-test-freeze-%d", os.Getpid()), Limits{Pids: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Delete(ctx); err != nil {
			t.Error(err)
		}
	}()
	if g.Freezing() {
		t.Error("it is frozen")
	}
	if err := g.Thaw(); err != nil {
		t.Errorf("a group that was never frozen: %v", err)
	}
	// Some that compute, and some that start others all the time.
	cmd := exec.Command("sh", "-c", `read go; for i in 1 2 3; do (while :; do :; done) & (while :; do (exit 0); done) & done; while :; do (exit 0); done`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	for { // until all have begun
		if pids, err := g.PIDs(); err != nil {
			t.Fatal(err)
		} else if len(pids) >= 7 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	used := func() time.Duration { return g.Read().CPU }
	for range 3 {
		for was := used(); used() == was; {
			time.Sleep(time.Millisecond)
		}
		if err := g.FreezeAll(ctx); err != nil {
			t.Fatal(err)
		}
		if !g.Freezing() {
			t.Error("it is not frozen")
		}
		// What was used before may be counted a moment later.
		was := used()
		for end := time.Now().Add(30 * time.Second); ; {
			time.Sleep(100 * time.Millisecond)
			now := used()
			if now == was {
				break
			}
			if was = now; time.Now().After(end) {
				t.Fatal("it uses the processor")
			}
		}
		if err := g.Thaw(); err != nil {
			t.Fatal(err)
		}
		for was := used(); used() == was; {
			time.Sleep(time.Millisecond)
		}
	}
	if err := g.FreezeAll(ctx); err != nil {
		t.Fatal(err)
	}
	all, err := g.PIDs()
	if err != nil || len(all) < 7 {
		t.Errorf("there are %v, %v, want 7 at least", all, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	g.LetDie(cmd.Process.Pid)
	<-ended
	if left, err := g.PIDs(); err != nil || len(left) != len(all)-1 {
		t.Errorf("of %v there are %v, %v", all, left, err)
	}
	if err := g.Kill(ctx); err != nil {
		t.Error(err)
	}
	if err := g.FreezeAll(ctx); err == nil {
		t.Error("what was killed is frozen")
	}
}

// TestFreezeAllInVain: what cannot be frozen in time goes on.
func TestFreezeAllInVain(t *testing.T) {
	tree := Find()
	if err := tree.Freezes(); err != nil {
		t.Skip("SKIPPED: " + err.Error()) // the test before this one insists
	}
	g, err := tree.Create(fmt.Sprintf("axo-test-freeze-vain-%d", os.Getpid()), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	none, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.FreezeAll(none); err != nil && g.Freezing() {
		t.Errorf("%v, and it is frozen", err)
	}
}
