package cgroup

import (
	"os"
	"path/filepath"
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
	if c := (*Group)(nil).Read(); c != (Counters{}) {
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
