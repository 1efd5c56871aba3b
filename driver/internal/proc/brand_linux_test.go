package proc

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestBrand(t *testing.T) {
	b, err := NewBrand()
	other, _ := NewBrand()
	if err != nil || b>>62 != 1 || b.Number() != 0 || other == b {
		t.Errorf("brand %x, %v", b, err)
	}
	if e := b.Exec(5); e.Sandbox() != b || e == b.Exec(6) || b.Exec(1<<24+5) != e || b.Guest() < e {
		t.Errorf("exec brand %x of %x", e, b)
	}
	if BrandOf(os.Getpid()) != 0 {
		t.Error("the test has a brand")
	}
	// A stranger is never touched.
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	pl := NewTracked(TrackedConfig{Brand: b})
	if n, err := pl.everything().kill(); n != 0 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
	if pids, _ := AllPIDs(); !slices.Contains(pids, c.Process.Pid) {
		t.Error("AllPIDs misses a process")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := pl.Kill(ctx); err != nil {
		t.Error(err)
	}
	if s, ok := statOf(c.Process.Pid); !ok || s.dead() {
		t.Error("a stranger was killed")
	}
}
