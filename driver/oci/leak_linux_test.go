package oci_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
)

// marked counts the processes of the host that have a word in their command line.
func marked(t testing.TB, word string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), word) {
			n++
		}
	}
	return n
}

// counter counts what is written to it.
type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) { c.n += int64(len(b)); return len(b), nil }

// hostile is a program that does not want to end, or to end alone.
type hostile struct {
	name   string
	spec   isolation.Spec
	limits isolation.Limits
	stdin  io.Reader
	script string           // $MARK is in the command line of all that it starts
	reason isolation.Reason // "": any
	bytes  int64            // that it writes; 0: any
	skip   bool
}

// TestNothingStays runs programs of the worst kind. Each ends in time, and with
// its sandbox everything of it is gone.
func TestNothingStays(t *testing.T) { eachEngine(t, testNothingStays) }

func testNothingStays(t *testing.T, c oci.Config) {
	d := newDriver(t, c)
	flood := int64(2 << 30)
	if c.Engine != "" {
		flood = 64 << 20 // it comes the same way, or in frames, which take longer
	}
	f, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	noPids := !f.Enforcement(isolation.LimitPids).Enforced
	wall := isolation.Limits{Wall: 500 * time.Millisecond}
	for _, h := range []hostile{
		{name: "ignores TERM", limits: wall, reason: isolation.ReasonTimeoutWall,
			script: `trap '' TERM INT HUP; sh -c "trap '' TERM; sleep 1000" $MARK; sleep 1000`},
		{name: "fork bomb", limits: wall, spec: isolation.Spec{Resources: isolation.Resources{Pids: 50}}, skip: noPids,
			script: `bomb() { sh -c "sleep 1000" $MARK & bomb; }; while :; do bomb 2>/dev/null; done`},
		{name: "daemons", reason: isolation.ReasonExited,
			script: `for i in 1 2 3 4 5; do (setsid sh -c "trap '' TERM; sleep 1000; :" $MARK >/dev/null 2>&1 </dev/null &); done; sleep 0.1`},
		{name: "a daemon that keeps the output", reason: isolation.ReasonExited,
			script: `(setsid sh -c "sleep 1000; :" $MARK &); echo out`, bytes: 4},
		{name: "waits for a FIFO", limits: wall, reason: isolation.ReasonTimeoutWall,
			script: `mkfifo /tmp/f; sh -c "cat < /tmp/f" $MARK`},
		{name: "stops itself", limits: wall, reason: isolation.ReasonTimeoutWall,
			script: `sh -c 'kill -STOP $$; sleep 1000' $MARK`},
		{name: "kills all it can", reason: isolation.ReasonSignaled, script: `sh -c "sleep 1000; :" $MARK & kill -KILL -1; kill -KILL $$`},
		{name: "floods", reason: isolation.ReasonExited, bytes: flood, skip: testing.Short(),
			script: fmt.Sprintf(`dd if=/dev/zero bs=1M count=%d 2>/dev/null`, flood>>20)},
		{name: "never reads what comes", limits: wall, reason: isolation.ReasonTimeoutWall, stdin: endless{},
			script: `sh -c "sleep 1000; :" $MARK`},
		{name: "fills the disk and goes on", limits: wall, reason: isolation.ReasonTimeoutWall, spec: isolation.Spec{Resources: isolation.Resources{DiskBytes: 1 << 20}},
			script: `while :; do cat /dev/zero > /tmp/x 2>/dev/null; cat /dev/zero > /dev/shm/x 2>/dev/null; done`},
	} {
		t.Run(h.name, func(t *testing.T) {
			if h.skip {
				t.Skip("not with -short, or without a limit on processes")
			}
			mark := fmt.Sprintf("axo-mark-%d-%d", os.Getpid(), ids.Add(1))
			var out counter
			begin := time.Now()
			h.spec.Requirement = isolation.Shell
			sb, err := d.Create(t.Context(), nextID(), h.spec)
			if err != nil {
				t.Fatal(err)
			}
			defer sb.Delete(context.Background())
			p, err := sb.Exec(t.Context(), isolation.ProcessSpec{
				Args: []string{"/bin/sh", "-c", h.script}, Limits: h.limits, Env: []string{"PATH=/usr/bin:/bin", "MARK=" + mark},
			}, isolation.Stdio{Stdin: h.stdin, Stdout: &out, Stderr: &out})
			if err != nil {
				t.Fatal(err)
			}
			e := wait(t, p)
			took := time.Since(begin)
			if h.reason != "" && e.Reason != h.reason || h.bytes > 0 && (out.n != h.bytes || e.Stdout.Bytes+e.Stderr.Bytes != h.bytes) {
				t.Errorf("%v after %v, %d bytes came", e, took, out.n)
			}
			if err := sb.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := marked(t, mark); n > 0 {
				t.Errorf("%d processes are left", n)
			}
			if c.StateDir != "" && marked(t, c.StateDir) > 0 {
				t.Error("processes of the runtime are left")
			}
		})
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("control groups are left: %v", left)
	}
}

// endless is input that has no end.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// stock is what a process has of its host.
type stock struct{ fds, goroutines, mounts, groups, children int }

// moreThan reports whether there is more of anything. Less is what a goroutine that
// was on its way out had.
func (s stock) moreThan(o stock) bool {
	return s.fds > o.fds || s.goroutines > o.goroutines || s.mounts > o.mounts || s.groups > o.groups || s.children > o.children
}

func takeStock(t testing.TB) stock {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	children := 0
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f) // a thread may have ended
		children += len(strings.Fields(string(b)))
	}
	own := 0 // others mount things, too
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, " - tmpfs axo ") || strings.Contains(l, "axo-guest") {
			own++
		}
	}
	return stock{len(fds), runtime.NumGoroutine(), own, len(leftovers(t)), children}
}

// TestManyRuns: what a run takes of the host it gives back. AXO_RUNS is how many.
func TestManyRuns(t *testing.T) { eachEngine(t, testManyRuns) }

func testManyRuns(t *testing.T, c oci.Config) {
	runs := 100
	if c.Engine != "" {
		runs = 10
	}
	if n, err := strconv.Atoi(os.Getenv("AXO_RUNS")); err == nil {
		runs = n
	}
	d := newDriver(t, c)
	f, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	spec := isolation.Spec{Requirement: isolation.Shell, Mounts: []isolation.Mount{{Source: t.TempDir(), Destination: "/data", ReadOnly: c.Engine == "runsc"}}}
	for _, l := range []isolation.Limit{isolation.LimitMemory, isolation.LimitPids, isolation.LimitCPUs} {
		if !f.Enforcement(l).Enforced {
			continue
		}
		switch l {
		case isolation.LimitMemory:
			spec.Resources.MemoryBytes = 64 << 20
		case isolation.LimitPids:
			spec.Resources.Pids = 20
		case isolation.LimitCPUs:
			spec.Resources.CPUs = 1
		}
	}
	once := func(n int) {
		sb, err := d.Create(context.Background(), nextID(), spec)
		if err != nil {
			t.Fatal(err)
		}
		script := "exit 3"
		if n%10 == 0 {
			script = "(setsid sleep 1000 &); echo x; exit 3"
		}
		p, err := sb.Exec(context.Background(), isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}, isolation.Stdio{Stdout: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := p.Wait(context.Background()); err != nil || e.Code != 3 {
			t.Fatalf("run %d: %v %v", n, e, err)
		}
		if err := sb.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 5 {
		once(n)
	}
	before := takeStock(t)
	for n := range runs {
		once(n)
	}
	// Goroutines that are on their way out get a moment.
	var after stock
	for range 100 {
		if after = takeStock(t); !after.moreThan(before) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("after %d runs: %+v, before: %+v", runs, after, before)
}
