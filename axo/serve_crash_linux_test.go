package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// daemon is an axo serve of a host's.
type daemon struct {
	*exec.Cmd
	ended chan struct{} // closed when it has
	log   *logged
}

// logged is what a daemon has said so far.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (h *host) serve(t *testing.T, point string, args ...string) *daemon {
	t.Helper()
	d := &daemon{
		Cmd:   exec.Command(filepath.Join(h.dir, "axo"), append([]string{"serve", "--state-dir", h.state}, args...)...),
		ended: make(chan struct{}), log: new(logged),
	}
	d.Env = append(os.Environ(), "AXO_FAILPOINT="+point)
	d.Stdout, d.Stderr = d.log, d.log
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.ended)
		_ = d.Wait() // how it ended is asked of its state
	}()
	t.Cleanup(func() {
		_ = d.Process.Kill()
		<-d.ended
	})
	eventually(t, "the daemon to answer", func() bool {
		_, err := h.do("ps")
		return err == nil || d.dead()
	})
	return d
}

// stop lets it end, and checks that it does, in order.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon does not end")
	}
	if code := d.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the daemon's status is %d:\n%s", code, d.log)
	}
}

func (d *daemon) dead() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// guests lists the processes that are the first of a sandbox of this host's.
func (h *host) guests(t *testing.T) (pids []string) {
	for _, p := range h.workers(t) {
		if exe, err := os.Readlink(filepath.Join(p, "exe")); err == nil && strings.Contains(exe, "axo-guest") {
			pids = append(pids, p)
		}
	}
	return pids
}

// do runs a command against the daemon.
func (h *host) do(args ...string) (string, error) {
	out, err := exec.Command(filepath.Join(h.dir, "axo"), append(args[:1:1], append([]string{"--state-dir", h.state}, args[1:]...)...)...).CombinedOutput()
	return string(out), err
}

// TestDaemonKilledAtEachFailpoint kills the daemon at every point of a sandbox's
// life. The next one has all that was acknowledged, and nothing that was deleted;
// when the rest is deleted nothing is left.
func TestDaemonKilledAtEachFailpoint(t *testing.T) {
	h := newHost(t, "failpoint")
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	// What the host can do is tried out before, so that the points are the sandbox's.
	first := h.serve(t, "", "--warm", "0")
	h.must(t, "create", "--id", "box")
	h.must(t, "rm", "box")
	first.stop(t)
	// Those of the driver are come to by the sandbox alone: nothing is made ahead.
	points := slices.Concat(failpoint.Session, failpoint.Detached)
	points = slices.DeleteFunc(points, func(p string) bool { return p == failpoint.OCIForgotten }) // a daemon keeps what the guest need not forget
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			d := h.serve(t, point, "--warm", "0")
			// What was acknowledged is what the next daemon is held to.
			var created, ran, deleted bool
			var text string
			used := make(chan struct{})
			go func() {
				defer close(used)
				if _, err := h.do("create", "--id", "box"); err != nil {
					return
				}
				created = true
				var err error
				// It goes on with the next daemon.
				text, err = h.do("exec", "--id", "x", "box", "--", "echo", "output")
				if ran = err == nil; d.dead() {
					return
				}
				_, err = h.do("rm", "box")
				deleted = err == nil
			}()
			eventually(t, "the daemon to come to "+point, d.dead)
			if st, ok := d.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
				t.Fatalf("the daemon was not killed: %v\n%s", d.ProcessState, d.log)
			}
			next := h.serve(t, "")
			<-used
			list, err := h.do("ps")
			if err != nil {
				t.Fatalf("%v\n%s", err, list)
			}
			there := strings.Contains(list, "box ")
			deleting := slices.Contains([]string{failpoint.SessionDeleting, failpoint.SessionUnmade, failpoint.OCIUnready, failpoint.OCIEnded, failpoint.OCIRemoved}, point)
			switch {
			case created && !deleted && !deleting && !there:
				t.Errorf("a sandbox that was acknowledged is gone:\n%s", list)
			case (deleted || deleting) && there:
				t.Errorf("a sandbox that was deleted is there:\n%s", list)
			}
			// What is told is what the kernel has.
			if guests := h.guests(t); there != (len(guests) > 0) {
				t.Errorf("processes of sandboxes %v, while ps tells\n%s", guests, list)
			}
			if there {
				if !strings.Contains(list, " running ") {
					t.Errorf("it is not as it was:\n%s", list)
				}
				if out, err := h.do("exec", "--timeout", "20s", "box", "--", "echo", "again"); err != nil || out != "again\n" {
					t.Errorf("it cannot be used: %v %q", err, out)
				}
				if point == failpoint.ExecStarted || point == failpoint.ExecEnded {
					// Nobody was told how it ended; that it began is known, and what it wrote.
					if out, err := h.do("logs", "box", "x"); err != nil || out != "output\n" {
						t.Errorf("its program's output: %v %q", err, out)
					}
				}
				if ran && text != "output\n" {
					t.Errorf("output %q", text)
				}
				if out, err := h.do("rm", "box"); err != nil {
					t.Errorf("rm: %v %s", err, out)
				}
			}
			next.stop(t)
			for _, pid := range []int{d.Process.Pid, next.Process.Pid} {
				eventually(t, "its control groups to go", func() bool { return len(h.groups(t, pid)) == 0 })
				h.clean(t, pid)
			}
			if t.Failed() {
				t.Logf("the first daemon, %d:\n%s\nthe next, %d:\n%s", d.Process.Pid, d.log, next.Process.Pid, next.log)
			}
			for _, pattern := range []string{"serve/*", "sessions/*/*", "axo.sock"} {
				if left := h.glob(t, filepath.Join(h.state, pattern)); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
		})
	}
}

// TestDaemonKilledWithSandboxesReady: create is a claim of what stands ready; what stands
// ready when the daemon is killed is gone with the next one, and what was handed out
// is not.
func TestDaemonKilledWithSandboxesReady(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	d := h.serve(t, "")
	kept := func() []string { return h.glob(t, filepath.Join(h.state, "sessions", "*", "*")) }
	h.must(t, "create", "--id", "first")
	eventually(t, "sandboxes to stand ready", func() bool { return len(kept()) == 3 })
	h.must(t, "create", "--id", "second")
	h.must(t, "exec", "second", "--", "sh", "-c", "echo kept > /tmp/f")
	eventually(t, "another to take its place", func() bool { return len(kept()) == 4 })
	c, err := client.New(client.Config{Address: "unix://" + server.SocketPath(h.state), Key: h.key(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if list, err := c.Pools(t.Context()); err != nil || list[0].Engine != "builtin" || list[0].Hits != 1 || list[0].Misses != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	next := h.serve(t, "")
	if left := kept(); len(left) != 2 {
		t.Errorf("left: %v\n%s", left, h.must(t, "ps"))
	}
	if out := h.must(t, "exec", "second", "--", "cat", "/tmp/f"); out != "kept\n" {
		t.Errorf("%q", out)
	}
	h.must(t, "rm", "first", "second")
	if err := next.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-next.ended
	for _, pid := range []int{d.Process.Pid, next.Process.Pid} {
		eventually(t, "its control groups to go", func() bool { return len(h.groups(t, pid)) == 0 })
		h.clean(t, pid)
	}
	if left := kept(); len(left) > 0 {
		t.Errorf("left: %v\n%s", left, next.log)
	}
}

func (h *host) key(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(tenant.TokenPath(h.state))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
