package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/pool"
)

// counts is a program that writes numbers without a pause to speak of, and keeps the
// last in its memory alone.
const counts = `i=0; while :; do i=$((i+1)); echo $i; [ $((i % 200)) = 0 ] && sleep 0.02; done`

// must runs a command against the daemon.
func (h *host) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.do(args...)
	if err != nil {
		t.Fatalf("axo %v: %v\n%s", args, err, out)
	}
	return out
}

// numbers reads the output of a program that counts, from an offset on, until there
// are so many lines.
func (h *host) numbers(t *testing.T, box string, from int64, lines int) []string {
	t.Helper()
	cmd := exec.Command(filepath.Join(h.dir, "axo"), "--state-dir", h.state, "logs", "--stdout", strconv.FormatInt(from, 10), box, "count")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // it is killed
	defer cmd.Process.Kill()
	var got bytes.Buffer
	buf := make([]byte, 4096)
	for bytes.Count(got.Bytes(), []byte("\n")) < lines+1 {
		n, err := out.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("%s: %v %s", box, err, said.String())
		}
	}
	list := strings.Split(got.String(), "\n")
	return list[1:lines] // the first may be a part of one
}

// begins tells where the output of a program in a copy begins.
func (h *host) begins(t *testing.T, box string) int64 {
	t.Helper()
	m := regexp.MustCompile(`"from": (\d+)`).FindStringSubmatch(h.must(t, "ps", "--json", box))
	if m == nil {
		t.Fatal("nothing is known of its output")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// written tells how much the program that counts has written.
func (h *host) written(t *testing.T, box string) int64 {
	t.Helper()
	list := h.must(t, "ps", "--json", box)
	at := regexp.MustCompile(`"to": (\d+)`).FindAllStringSubmatch(list, -1)
	if len(at) < 2 { // its input, then its output
		t.Fatalf("nothing is known of its output: %s", list)
	}
	n, err := strconv.ParseInt(at[1][1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stopped reports whether the QEMU of the one machine that there is, is stopped.
func (h *host) stopped(t *testing.T) bool {
	t.Helper()
	list := h.glob(t, filepath.Join(h.state, "sessions", "qemu", "*", "record.json"))
	if len(list) != 1 {
		t.Fatalf("machines: %v, want one", list)
	}
	var rec struct{ Main struct{ PID int } }
	b, err := os.ReadFile(list[0])
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err == nil {
		b, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", rec.Main.PID))
	}
	if err != nil {
		t.Fatal(err)
	}
	// proc_pid_stat(5): the state comes after the name, which is in brackets.
	return strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')'):]), ") T")
}

// consecutive fails unless each number is one more than the one before.
func consecutive(t *testing.T, who string, list []string) {
	t.Helper()
	for i := 1; i < len(list); i++ {
		a, err1 := strconv.Atoi(list[i-1])
		b, err2 := strconv.Atoi(list[i])
		if err1 != nil || err2 != nil || b != a+1 {
			t.Fatalf("%s: after %q comes %q", who, list[i-1], list[i])
		}
	}
}

// TestDaemonCopiesMachines copies a virtual machine of the daemon's with a program
// that writes all the time: its copies go on with it, and no line is lost or doubled.
// Then it kills the daemon at each point of copying, of pausing and of resuming. The next
// one has the sandbox, the program in it goes on, and of copies that nobody was told of
// nothing is left.
func TestDaemonCopiesMachines(t *testing.T) {
	h := newVMHost(t)
	t.Cleanup(func() {
		if t.Failed() { // what outlives its daemon does not outlive the test
			h.serve(t, "")
			t.Logf("%s", h.must(t, "rm", "origin"))
		}
	})
	d := h.serve(t, "", "--warm-vms", "1")
	kept := func() []string { return h.glob(t, filepath.Join(h.state, "sessions", "qemu", "*")) }
	h.must(t, "create", "--tier", "microvm", "--allow-emulated", "--id", "first")
	eventually(t, "a machine to stand ready", func() bool { return len(kept()) == 2 })
	h.must(t, "create", "--tier", "microvm", "--allow-emulated", "--id", "origin")
	h.must(t, "rm", "first")
	if list := kept(); !slices.ContainsFunc(list, func(dir string) bool { return pool.MadeAhead(filepath.Base(dir)) }) {
		t.Errorf("the one that stood ready was not taken: %v", list)
	}
	h.must(t, "exec", "-d", "--id", "count", "origin", "--", "sh", "-c", counts)
	consecutive(t, "origin", h.numbers(t, "origin", 0, 300))
	if got := strings.Fields(h.must(t, "fork", "-n", "2", "origin")); len(got) != 2 {
		t.Fatalf("%q", got)
	} else {
		for _, id := range got {
			consecutive(t, "a copy", h.numbers(t, id, h.begins(t, id), 300))
		}
		h.must(t, append([]string{"rm"}, got...)...)
	}
	if got := h.must(t, "snapshot", "origin", "then"); got != "then\n" {
		t.Errorf("%q", got)
	}
	h.must(t, "create", "--from-snapshot", "then", "--id", "restored")
	consecutive(t, "restored", h.numbers(t, "restored", h.begins(t, "restored"), 300))
	consecutive(t, "origin", h.numbers(t, "origin", 0, 3000))
	if out, err := h.do("create", "--from-snapshot", "then", "--memory", "1G"); err == nil || !strings.Contains(out, "does not go with") {
		t.Errorf("%v %q", err, out)
	}
	h.must(t, "rm", "restored")
	if got := h.must(t, "snapshots", "ls"); !strings.Contains(got, "then ") {
		t.Errorf("%q", got)
	}

	pids := []int{d.Process.Pid}
	// A run that was accepted outlives the daemon, too.
	tier := isolation.TierMicroVM
	r := shell("cat; sleep 1; exit 3")
	r.Tier, r.AllowEmulated, r.Input = &tier, true, []byte("its input\n")
	run, err := h.client(t).StartRun(t.Context(), r, "")
	if err != nil || !run.Durable {
		t.Fatalf("%+v %v", run, err)
	}
	eventually(t, "the run to have begun", func() bool {
		s, err := h.client(t).Runs(t.Context())
		return err == nil && (s[0].Stdout.To > 0 || !s[0].Running)
	})
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	d = h.serve(t, "")
	pids = append(pids, d.Process.Pid)
	if s, err := h.client(t).WaitRun(t.Context(), run.ID); err != nil || s.Result == nil || s.Result.Exit.Code != 3 || s.Result.Stdout.String() != "its input\n" {
		t.Errorf("%+v %v", s, err)
	}
	for _, point := range failpoint.Copy {
		if err := d.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-d.ended
		d = h.serve(t, point)
		pids = append(pids, d.Process.Pid)
		if out, err := h.do("ps"); err != nil || !strings.Contains(out, "origin  running") {
			t.Fatalf("%s: before: %v\n%s", point, err, out)
		}
		var acknowledged bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			var err error
			switch point {
			case failpoint.ForkRecorded, failpoint.Forked:
				_, err = h.do("fork", "origin")
			case failpoint.SnapshotDeleting:
				_, err = h.do("snapshots", "rm", "then")
			default:
				_, err = h.do("snapshot", "origin", "late")
			}
			acknowledged = err == nil
		}()
		eventually(t, "the daemon to come to "+point, d.dead)
		<-done
		if st, ok := d.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL || acknowledged {
			t.Fatalf("%s: the daemon was not killed: %v\n%s", point, d.ProcessState, d.log)
		}
		d = h.serve(t, "")
		pids = append(pids, d.Process.Pid)
		boxes := strings.Split(strings.TrimSpace(h.must(t, "ps")), "\n")
		if len(boxes) != 2 || !strings.HasPrefix(boxes[1], "origin  running") {
			t.Errorf("%s: there are %q", point, boxes)
		}
		if list := kept(); len(list) != 1 {
			t.Errorf("%s: left, beside the origin: %v", point, list)
		}
		// What is kept goes back further than what is written now.
		consecutive(t, point, h.numbers(t, "origin", max(0, h.written(t, "origin")-2000), 600))
		taken := h.must(t, "snapshots", "ls")
		if kept := strings.Contains(taken, "late "); kept != (point == failpoint.SnapshotKept) {
			t.Errorf("%s: snapshots are\n%s", point, taken)
		} else if kept {
			h.must(t, "snapshots", "rm", "late")
		}
		if there := strings.Contains(taken, "then "); there != (slices.Index(failpoint.Copy, point) < slices.Index(failpoint.Copy, failpoint.SnapshotDeleting)) {
			t.Errorf("%s: snapshots are\n%s", point, taken)
		}
		if left := h.glob(t, filepath.Join(h.state, "snapshots", "snap-*")); len(left) > 1 {
			t.Errorf("%s: left: %v", point, left)
		}
	}
	for _, point := range slices.Concat(failpoint.Pause, failpoint.Resume) {
		if err := d.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-d.ended
		d = h.serve(t, point)
		pids = append(pids, d.Process.Pid)
		what := "pause"
		if slices.Contains(failpoint.Resume, point) {
			h.must(t, "pause", "origin")
			what = "resume"
		}
		if out, err := h.do(what, "origin"); err == nil {
			t.Fatalf("%s: %s was acknowledged: %s", point, what, out)
		}
		eventually(t, "the daemon to come to "+point, d.dead)
		d = h.serve(t, "")
		pids = append(pids, d.Process.Pid)
		// It is one or the other, and what is told is what the kernel has.
		list := h.must(t, "ps")
		paused := strings.Contains(list, "origin  paused")
		if !paused && !strings.Contains(list, "origin  running") {
			t.Fatalf("%s: there are\n%s", point, list)
		}
		eventually(t, "QEMU to be as it is told of at "+point, func() bool { return h.stopped(t) == paused })
		if paused {
			h.must(t, "resume", "origin")
		}
		if out := h.must(t, "exec", "--timeout", "60s", "origin", "--", "echo", "again"); out != "again\n" {
			t.Errorf("%s: it cannot be used: %q", point, out)
		}
		consecutive(t, point, h.numbers(t, "origin", max(0, h.written(t, "origin")-2000), 600))
	}
	h.must(t, "rm", "origin")
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon does not end")
	}
	for _, pid := range pids {
		eventually(t, "its control groups to go", func() bool { return len(h.groups(t, pid)) == 0 })
		h.clean(t, pid)
		if left := append(h.machines(t, pid), h.socketDirs(t, pid)...); len(left) > 0 {
			t.Errorf("left of %d: %v", pid, left)
		}
	}
	for _, pattern := range []string{"serve/[^.]*", "serve/.snapshots/*", "sessions/*/*", "snapshots/snap-*"} {
		if left := h.glob(t, filepath.Join(h.state, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}
