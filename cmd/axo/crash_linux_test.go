package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation/internal/testprog"
)

// TestKilledRunLeavesNothing kills axo while a module runs. Its worker dies
// with it, and the next axo removes the rest.
func TestKilledRunLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	for out, pkg := range map[string]string{"axo": ".", "axo-wasm": "../axo-wasm"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, out), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, msg)
		}
	}
	state := filepath.Join(dir, "state")
	axo := func(args ...string) *exec.Cmd {
		return exec.Command(filepath.Join(dir, "axo"), append([]string{"run", "--state-dir", state}, args...)...)
	}
	entries := func() []string {
		list, err := filepath.Glob(filepath.Join(state, "journal", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	groups := func() int {
		list, err := filepath.Glob("/sys/fs/cgroup/memory/*/*/axo-wasm-*")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := groups()
	cmd := axo(testprog.Wat(t, "loop"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	workers := func() (pids []string) {
		list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range list {
			if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), "axo-wasm\x00run") {
				if exe, err := os.Readlink(filepath.Join(filepath.Dir(f), "exe")); err == nil && strings.HasPrefix(exe, dir) {
					pids = append(pids, filepath.Dir(f))
				}
			}
		}
		return pids
	}
	eventually(t, "a worker to compute", func() bool { return len(workers()) > 0 && len(entries()) > 0 })
	time.Sleep(50 * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the worker to die with its host", func() bool { return len(workers()) == 0 })
	if out, err := axo(testprog.Wat(t, "tiny")).CombinedOutput(); err != nil || string(out) != "tiny\n" {
		t.Fatalf("%v %s", err, out)
	}
	if left := entries(); len(left) > 0 {
		t.Errorf("journal entries are left: %v", left)
	}
	if n := groups(); n > before {
		t.Errorf("%d control groups, %d were there before", n, before)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
