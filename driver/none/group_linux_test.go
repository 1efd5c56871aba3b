package none

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// TestUnified runs the version 2 code on whatever hierarchy of that version is
// mounted: its members, its kill and its CPU time need no controller.
func TestUnified(t *testing.T) {
	own, mounts, err := ownGroups()
	if err != nil {
		t.Fatal(err)
	}
	m, ok := mounts[""]
	if !ok {
		missing(t, "no version 2 hierarchy is mounted")
	}
	g := findUnified(m, m.join(own[""]))
	if !g.any() {
		missing(t, "no group can be made in it: "+g.why[ctlCore])
	}
	t.Logf("controllers at %v, missing %v", g.base, g.why)
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
	left, err := gr.pids()
	if err != nil || len(left) != 1 {
		t.Errorf("members %v, %v, want the survivor", left, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	for _, dir := range gr.dirs {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if g.base[ctlMemory] == "" {
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

// TestCounters reads what kernels write, of both versions.
func TestCounters(t *testing.T) {
	write := func(dir, file, text string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v1 := t.TempDir()
	write(v1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
	write(v1, "memory.max_usage_in_bytes", "4096\n")
	write(v1, "pids.events", "max 7\n")
	write(v1, "cpuacct.usage", "123456789\n")
	one := &group{dir: map[string]string{ctlMemory: v1, ctlPids: v1, ctlAcct: v1}, dirs: []string{v1}}
	if got, want := one.read(), (counters{cpu: 123456789, hasCPU: true, peak: 4096, oom: 3, pids: 7}); got != want {
		t.Errorf("version 1: %+v, want %+v", got, want)
	}
	v2 := t.TempDir()
	write(v2, "memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\noom_group_kill 0\n")
	write(v2, "memory.peak", "4096\n")
	write(v2, "pids.events", "max 7\n")
	write(v2, "cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
	two := &group{v2: true, dir: map[string]string{ctlMemory: v2, ctlPids: v2, ctlCPU: v2}, dirs: []string{v2}}
	if got, want := two.read(), (counters{cpu: 1500 * time.Microsecond, hasCPU: true, peak: 4096, oom: 3, pids: 7}); got != want {
		t.Errorf("version 2: %+v, want %+v", got, want)
	}
	for _, f := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.max"} {
		write(v2, f, "")
	}
	if err := two.limit(isolation.Resources{MemoryBytes: 1 << 20, Pids: 5, CPUs: 0.5}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"memory.max": "1048576", "memory.swap.max": "0", "pids.max": "5", "cpu.max": "50000 100000"} {
		if b, _ := os.ReadFile(filepath.Join(v2, file)); string(b) != want {
			t.Errorf("%s is %q, want %q", file, b, want)
		}
	}
	if c := (*group)(nil).read(); c != (counters{}) {
		t.Errorf("no group counts %+v", c)
	}
}

func TestMountJoin(t *testing.T) {
	for _, c := range []struct{ root, point, path, want string }{
		{"/", "/sys/fs/cgroup", "/a/b", "/sys/fs/cgroup/a/b"},
		{"/", "/sys/fs/cgroup", "/", "/sys/fs/cgroup"},
		{"/docker/x", "/sys/fs/cgroup", "/docker/x/y", "/sys/fs/cgroup/y"},
		{"/docker/x", "/sys/fs/cgroup", "/elsewhere", "/sys/fs/cgroup"},
		{"/", "/sys/fs/cgroup", "/../outside", "/sys/fs/cgroup/outside"},
	} {
		if got := (mount{c.root, c.point}).join(c.path); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
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
