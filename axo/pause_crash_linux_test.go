package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// frozen reports whether the programs of the one container that there is stand still.
func (h *host) frozen(t *testing.T) bool {
	t.Helper()
	list := h.glob(t, filepath.Join(h.state, "sessions", "builtin", "*", "record.json"))
	if len(list) != 1 {
		t.Fatalf("containers: %v, want one", list)
	}
	var rec struct {
		Data struct {
			Group *cgroup.State
		}
	}
	b, err := os.ReadFile(list[0])
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err != nil {
		t.Fatal(err)
	}
	g, err := cgroup.Reopen(rec.Data.Group)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	return g.Freezing()
}

// TestDaemonKilledWhilePausing kills the daemon at every point at which a container is
// paused, or goes on. For the next one it is one or the other, as the kernel has it, and as
// it was acknowledged; its program goes on with no line lost or doubled. One that is paused
// can be removed by the daemon after that.
func TestDaemonKilledWhilePausing(t *testing.T) {
	h := newHost(t, "failpoint")
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	if err := cgroup.Find().Freezes(); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" && os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skip("SKIPPED, NOT PROVED: " + err.Error())
	}
	d := h.serve(t, "", "--warm", "0")
	pids := []int{d.Process.Pid}
	again := func(point string) {
		if err := d.Process.Kill(); err != nil && !d.dead() {
			t.Fatal(err)
		}
		<-d.ended
		d = h.serve(t, point, "--warm", "0")
		pids = append(pids, d.Process.Pid)
	}
	h.must(t, "create", "--id", "box")
	h.must(t, "exec", "--id", "count", "--detach", "box", "--", "sh", "-c", counts)
	for _, point := range slices.Concat(failpoint.Freeze, failpoint.Thaw) {
		what := "pause"
		if slices.Contains(failpoint.Thaw, point) {
			h.must(t, "pause", "box")
			what = "resume"
		}
		again(point)
		if list := h.must(t, "ps"); what == "resume" && !strings.Contains(list, "box  paused") {
			t.Fatalf("%s: its pause was acknowledged, and there are\n%s", point, list)
		}
		if out, err := h.do(what, "box"); err == nil {
			t.Fatalf("%s: %s was acknowledged: %s", point, what, out)
		}
		eventually(t, "the daemon to come to "+point, d.dead)
		if st, ok := d.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
			t.Fatalf("%s: the daemon was not killed: %v\n%s", point, d.ProcessState, d.log)
		}
		again("")
		list := h.must(t, "ps")
		paused := strings.Contains(list, "box  paused")
		if !paused && !strings.Contains(list, "box  running") {
			t.Fatalf("%s: there are\n%s", point, list)
		}
		if h.frozen(t) != paused {
			t.Errorf("%s: its programs are frozen: %v, and there are\n%s", point, !paused, list)
		}
		if paused {
			if out, err := h.do("exec", "box", "--", "true"); err == nil || !strings.Contains(out, "paused") {
				t.Errorf("%s: in what is paused a program is started: %v %s", point, err, out)
			}
			h.must(t, "resume", "box")
		}
		if out := h.must(t, "exec", "--timeout", "60s", "box", "--", "echo", "again"); out != "again\n" {
			t.Errorf("%s: it cannot be used: %q", point, out)
		}
		consecutive(t, point, h.numbers(t, "box", max(0, h.written(t, "box")-2000), 600))
	}
	h.must(t, "pause", "box")
	again("")
	h.must(t, "rm", "box")
	d.stop(t)
	for _, pid := range pids {
		eventually(t, "its control groups to go", func() bool { return len(h.groups(t, pid)) == 0 })
		h.clean(t, pid)
	}
	for _, pattern := range []string{"serve/[^.]*", "sessions/*/*"} {
		if left := h.glob(t, filepath.Join(h.state, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}
