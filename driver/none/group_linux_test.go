package none

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// TestUnified runs the version 2 code on whatever hierarchy of that version is
// mounted: its members, its kill and its CPU time need no controller.
func TestUnified(t *testing.T) {
	g := cgroup.FindUnified()
	if !g.Any() {
		missing(t, "no group can be made in a version 2 hierarchy: "+g.Why(cgroup.Core))
	}
	t.Logf("groups are made in %s", g.Base(cgroup.Core))
	e := &nativeEngine{cfg: Config{}, found: g}
	if err := e.cfg.setDefaults(); err != nil {
		t.Fatal(err)
	}
	d := newDriver(e, e.cfg.Drain)
	defer d.Close()
	sb, err := d.Create(t.Context(), "unified", isolation.Spec{Requirement: isolation.NativeTrusted})
	if err != nil {
		t.Fatal(err)
	}
	gr := sb.(*sandbox).place.(*nativePlace).group
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sh", "-c",
		"trap '' TERM; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; (setsid sleep 1000 &); exit 3"}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Code != 3 || exit.Survivors != 1 || exit.Usage.CPU == 0 {
		t.Errorf("%+v, %v, want status 3 and one survivor", exit, err)
	}
	left, err := gr.PIDs()
	if err != nil || len(left) != 1 {
		t.Errorf("members %v, %v, want the survivor", left, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	for _, dir := range gr.Dirs() {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if !g.Has(cgroup.Memory) {
		f := isolation.Features{}
		if err := e.probe(t.Context(), &f); err != nil {
			t.Error(err)
		}
	}
}

func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("AXO_REQUIRE") == "1" {
		t.Fatal("REQUIRED: " + why)
	}
	t.Skip("SKIPPED, NOT PROVED: " + why)
}

func TestBrand(t *testing.T) {
	b, err := newBrand()
	other, _ := newBrand()
	if err != nil || b>>62 != 1 || b&brandExecMask != 0 || other == b {
		t.Errorf("brand %x, %v", b, err)
	}
	if e := b.exec(5); e.sandbox() != b || e == b.exec(6) || b.exec(1<<brandExecBits+5) != e {
		t.Errorf("exec brand %x of %x", e, b)
	}
	if brandOf(os.Getpid()) != 0 {
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
	pl := &nativePlace{brand: b}
	if n, err := pl.everything().kill(); n != 0 || err != nil {
		t.Errorf("killed %d, %v", n, err)
	}
	if pids, _ := allPids(); !slices.Contains(pids, c.Process.Pid) {
		t.Error("allPids misses a process")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := pl.kill(ctx); err != nil {
		t.Error(err)
	}
	if s, ok := statOf(c.Process.Pid); !ok || s.dead() {
		t.Error("a stranger was killed")
	}
}
