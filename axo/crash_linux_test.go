package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/testprog"
)

// host is an axo of its own, with a state directory of its own.
type host struct {
	dir, state string
}

func newHost(t *testing.T, tags ...string) *host {
	t.Helper()
	h := &host{dir: t.TempDir()}
	h.state = filepath.Join(h.dir, "state")
	if err := testprog.BuildCommands(h.dir, []string{"axo", "axo-wasm", "axo-guest"}, tags...); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) axo(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(h.dir, "axo"), append([]string{"run", "--state-dir", h.state}, args...)...)
}

func (h *host) glob(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (h *host) entries(t *testing.T) []string {
	return h.glob(t, filepath.Join(h.state, "journal", "*"))
}

// groups lists the control groups of an axo. Their names have its process id.
func (h *host) groups(t *testing.T, pid int) (list []string) {
	for _, depth := range []string{"*", "*/*", "*/*/*", "*/*/*/*"} {
		list = append(list, h.glob(t, fmt.Sprintf("/sys/fs/cgroup/%s/axo-*-%d-*", depth, pid))...)
	}
	return list
}

// workers lists the processes that run a program of this host, and those that
// were told of its state directory.
func (h *host) workers(t *testing.T) (pids []string) {
	for _, link := range h.glob(t, "/proc/[0-9]*/exe") {
		if exe, err := os.Readlink(link); err == nil && strings.HasPrefix(exe, h.dir) {
			pids = append(pids, filepath.Dir(link))
		} else if b, err := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline")); err == nil && strings.Contains(string(b), h.state) {
			pids = append(pids, filepath.Dir(link))
		}
	}
	return pids
}

// sweep runs something else, and checks that nothing of an earlier axo is left.
func (h *host) sweep(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the worker to die with its host", func() bool { return len(h.workers(t)) == 0 })
	if out, err := h.axo(testprog.Wat(t, "tiny")).CombinedOutput(); err != nil || string(out) != "tiny\n" {
		t.Fatalf("%v %s", err, out)
	}
	h.clean(t, pid)
}

// clean checks that nothing of an axo is left.
func (h *host) clean(t *testing.T, pid int) {
	t.Helper()
	if left := h.workers(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if left := h.entries(t); len(left) > 0 {
		t.Errorf("journal entries are left: %v", left)
	}
	if left := h.groups(t, pid); len(left) > 0 {
		t.Errorf("control groups are left: %v", left)
	}
	for _, pattern := range []string{"wasm/tmp-*", "spill/*", "*/*.tmp", "oci/*/*"} {
		if left := h.glob(t, filepath.Join(h.state, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// TestKilledRunLeavesNothing kills axo while a module runs. Its worker dies
// with it, and the next axo removes the rest.
func TestKilledRunLeavesNothing(t *testing.T) {
	h := newHost(t)
	cmd := h.axo(testprog.Wat(t, "loop"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a worker to compute", func() bool { return len(h.workers(t)) > 1 && len(h.entries(t)) > 0 })
	time.Sleep(50 * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	h.sweep(t, cmd.Process.Pid)
}

// TestKilledAtEachFailpoint kills axo at every point of a run, and looks for
// what is left after the next one.
func TestKilledAtEachFailpoint(t *testing.T) {
	h := newHost(t, "failpoint")
	dead := func(t *testing.T, point string, args ...string) {
		t.Helper()
		cmd := h.axo(args...)
		cmd.Env = append(os.Environ(), "AXO_FAILPOINT="+point)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("was not killed: %v\n%s", err, out)
		}
		left := h.groups(t, cmd.Process.Pid)
		if slices.Contains([]string{failpoint.NoneStarted, failpoint.Attached, failpoint.OCIGroup, failpoint.OCIMade}, point) && len(left) == 0 {
			complain := t.Errorf
			if os.Getenv("AXO_REQUIRE") == "" {
				complain = t.Logf
			}
			complain("SKIPPED, NOT PROVED: %s", "no control group was left to sweep: the host has none, or this test does not find them")
		}
		h.sweep(t, cmd.Process.Pid)
	}
	for _, point := range failpoint.Wasm {
		t.Run(point, func(t *testing.T) {
			// Every time a first run: with a compilation.
			if err := os.RemoveAll(filepath.Join(h.state, "wasm")); err != nil {
				t.Fatal(err)
			}
			dead(t, point, "--json", "--spill", "1M", testprog.Wat(t, "exit7"))
		})
	}
	for _, point := range failpoint.OCI {
		t.Run(point+"/oci", func(t *testing.T) {
			before := traces(t)
			dead(t, point, "--engine", "builtin", "--memory", "64M", "--", "/bin/sh", "-c", "sleep 86399 & setsid sleep 86399 & sleep 0.1")
			eventually(t, "the container to go", func() bool { return traces(t) == before })
		})
	}
	// With a runtime there is more to leave: its own process, its notes, its
	// control groups.
	for _, name := range all.Runtimes() {
		for _, point := range failpoint.OCI {
			if point == failpoint.OCIEnded {
				continue // the runtime ends it
			}
			t.Run(point+"/"+name, func(t *testing.T) {
				t.Setenv("AXO_"+strings.ToUpper(name)+"_PATH", testprog.Runtime(t, name))
				before := traces(t)
				dead(t, point, "--engine", name, "--memory", "64M", "--", "/bin/sh", "-c", "sleep 86399 & setsid sleep 86399 & sleep 0.1")
				eventually(t, "the container to go", func() bool { return traces(t) == before })
			})
		}
	}
	for _, point := range failpoint.None {
		t.Run(point+"/native", func(t *testing.T) { dead(t, point, "--native", "--", "sleep", "0.1") })
	}
}

// traces are what a container could leave that is in no journal: processes,
// whose namespaces live as long as they do, and mounts.
func traces(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	mounts := slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool { return !strings.Contains(l, "axo") })
	sleepers := 0
	links, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if b, err := os.ReadFile(l); err == nil && string(b) == "sleep\x0086399\x00" {
			sleepers++
		}
	}
	return fmt.Sprintf("%d sleepers, mounts %s", sleepers, mounts)
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
