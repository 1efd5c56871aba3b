package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

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
	one := &Group{dir: map[string]string{Memory: v1, Pids: v1, CPUAcct: v1}, dirs: []string{v1}}
	if got, want := one.Read(), (Counters{CPU: 123456789, HasCPU: true, Peak: 4096, OOM: 3, Pids: 7}); got != want {
		t.Errorf("version 1: %+v, want %+v", got, want)
	}
	v2 := t.TempDir()
	write(v2, "memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 3\noom_group_kill 0\n")
	write(v2, "memory.peak", "4096\n")
	write(v2, "pids.events", "max 7\n")
	write(v2, "cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
	two := &Group{v2: true, dir: map[string]string{Memory: v2, Pids: v2, CPU: v2}, dirs: []string{v2}}
	if got, want := two.Read(), (Counters{CPU: 1500 * time.Microsecond, HasCPU: true, Peak: 4096, OOM: 3, Pids: 7}); got != want {
		t.Errorf("version 2: %+v, want %+v", got, want)
	}
	for _, f := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.max"} {
		write(v2, f, "")
	}
	if err := two.limit(Limits{MemoryBytes: 1 << 20, Pids: 5, CPUs: 0.5}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"memory.max": "1048576", "memory.swap.max": "0", "pids.max": "5", "cpu.max": "50000 100000"} {
		if b, _ := os.ReadFile(filepath.Join(v2, file)); string(b) != want {
			t.Errorf("%s is %q, want %q", file, b, want)
		}
	}
	one.dir[IO], two.dir[IO] = v1, v2
	for _, f := range []string{"read_bps", "write_bps", "read_iops", "write_iops"} {
		write(v1, "blkio.throttle."+f+"_device", "")
	}
	write(v2, "io.max", "")
	l := Limits{IO: []IOLimit{{Device: Device{254, 16}, ReadBytes: 1000, WriteOps: 1 << 40}}}
	if err := errors.Join(one.limit(l), two.limit(l)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		v1 + "/blkio.throttle.read_bps_device": "254:16 1000", v1 + "/blkio.throttle.write_iops_device": "254:16 4294967295",
		v1 + "/blkio.throttle.write_bps_device": "", v2 + "/io.max": "254:16 rbps=1000 wiops=1099511627776",
	} {
		if b, _ := os.ReadFile(file); string(b) != want {
			t.Errorf("%s is %q, want %q", file, b, want)
		}
	}
	if c := (*Group)(nil).Read(); c != (Counters{}) {
		t.Errorf("no group counts %+v", c)
	}
}

// TestBelow makes a group in a group, and holds a process of the inner one to the
// limits of the outer.
func TestBelow(t *testing.T) {
	tree := Find()
	if !tree.Has(Pids) {
		if os.Getenv("AXO_REQUIRE") != "" && os.Getuid() == 0 {
			t.Fatal(tree.Why(Pids))
		}
		t.Skip("SKIPPED: " + tree.Why(Pids))
	}
	ctx := context.Background()
	outer, err := tree.Create(fmt.Sprintf("axo-test-below-%d", os.Getpid()), Limits{CPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := outer.Delete(ctx); err != nil {
			t.Error(err)
		}
	}()
	below, err := outer.Below()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := below.Create("p1", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := inner.Delete(ctx); err != nil {
			t.Error(err)
		}
	}()
	if tree.Has(CPU) && inner.dir[CPU] == "" {
		t.Error("the inner group is in no group with a limit on CPU time")
	}
	cmd := exec.Command("sh", "-c", `read go; sleep 100 & sleep 100 & wait`)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := errors.Join(inner.Add(cmd.Process.Pid), outer.Limit(Limits{Pids: 2})); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	<-ended // the second child is refused, and dash gives up
	if inner.Read().Pids+outer.Read().Pids == 0 {
		t.Error("no refused fork was counted")
	}
	if err := inner.Kill(ctx); err != nil {
		t.Error(err)
	}
	if err := outer.Limit(Limits{}); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(outer.dir[Pids], "pids.max")); err != nil || strings.TrimSpace(string(b)) != "max" {
		t.Errorf("pids.max is %q, %v", b, err)
	}
	err = errors.Join(inner.Freeze(true), inner.Freeze(false))
	if outer.v2 && err != nil || !outer.v2 && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Freeze: %v", err)
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
