package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// client is one of the daemon's own user.
func (h *host) client(t *testing.T) *client.Driver {
	t.Helper()
	c, err := client.New(client.Config{Address: "unix://" + server.SocketPath(h.state), Key: h.key(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func shell(script string) api.Run {
	return api.Run{Spec: isolation.Spec{Requirement: isolation.Shell}, Process: isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", script}}}
}

// numbered is what a program writes that has its input, and some lines.
func numbered(input string, lines int) string {
	var b strings.Builder
	b.WriteString(input)
	for i := range lines {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// TestRunsOutliveTheDaemon: a run that was accepted goes on when the daemon is killed or
// ends in order, with its limits and its input; the next one has its output whole and the
// result that it had. Then the daemon is killed at each point of such a run: a run either
// never began, which is known, or ends truthfully, and begins once by its key.
func TestRunsOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t, "failpoint")
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	var pids []int
	serve := func(point string) *daemon {
		d := h.serve(t, point, "--warm", "0")
		pids = append(pids, d.Process.Pid)
		return d
	}
	end := func(d *daemon) {
		t.Helper()
		if err := d.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-d.ended
	}
	d := serve("")
	c := h.client(t)
	const lines = 3000
	talk := shell(`cat; i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); [ $((i % 300)) = 0 ] && sleep 0.2; done; echo end >&2; exit 3`)
	talk.Input = []byte("its input\n")
	talking, err := c.StartRun(t.Context(), talk, "talk")
	if err != nil || !talking.Durable {
		t.Fatalf("%+v %v", talking, err)
	}
	limited := shell("sleep 1000")
	limited.Process.Limits.Wall = 5 * time.Second
	limitedAt := time.Now()
	ending, err := c.StartRun(t.Context(), limited, "")
	if err != nil {
		t.Fatal(err)
	}
	canceled, err := c.StartRun(t.Context(), shell("echo begun; sleep 1000"), "")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the runs to have begun", func() bool {
		s, err := c.Runs(t.Context())
		return err == nil && s[0].Stdout.To > 20 && s[2].Stdout.To > 0
	})
	end(d)
	d = serve("")
	if again, err := c.StartRun(t.Context(), talk, "talk"); err != nil || again.ID != talking.ID {
		t.Errorf("by its key: %+v %v", again, err)
	}
	d.stop(t)
	d = serve("")
	var out bytes.Buffer
	last, err := c.FollowRun(t.Context(), talking.ID, isolation.Offsets{}, &out, nil)
	if err != nil || out.String() != numbered("its input\n", lines) {
		t.Errorf("%d bytes of output, want %d: %v", out.Len(), len(numbered("its input\n", lines)), err)
	}
	if s, err := c.WaitRun(t.Context(), talking.ID); err != nil || s.Result == nil || s.Result.Exit.Code != 3 || s.Result.Stdout.String() != out.String() ||
		s.Result.Stderr.String() != "end\n" || s.Result.Truncated || s.Result.Exit.Stdout.Dropped != 0 || s.Result.Engine != "builtin" {
		t.Errorf("%+v, at the end of the stream %+v: %v", s, last, err)
	}
	if s, err := c.WaitRun(t.Context(), ending.ID); err != nil || s.Result == nil || s.Result.Exit.Reason != isolation.ReasonTimeoutWall || time.Since(limitedAt) < limited.Process.Limits.Wall {
		t.Errorf("its deadline: %+v %v", s, err)
	}
	if err := c.CancelRun(t.Context(), canceled.ID); err != nil {
		t.Error(err)
	}
	if s, err := c.WaitRun(t.Context(), canceled.ID); err != nil || s.Result == nil || s.Result.Exit.Reason != isolation.ReasonCanceled || s.Result.Stdout.String() != "begun\n" {
		t.Errorf("canceled: %+v %v", s, err)
	}
	if left := h.guests(t); len(left) > 0 {
		t.Errorf("sandboxes are left: %v", left)
	}
	end(d)

	for _, point := range failpoint.Run {
		t.Run(point, func(t *testing.T) {
			d := serve(point)
			once := shell("cat; exit 3")
			once.Input = []byte("its input\n")
			// It may be killed before it answers.
			first, aerr := c.StartRun(t.Context(), once, point)
			eventually(t, "the daemon to come to "+point, d.dead)
			if st, ok := d.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
				t.Fatalf("the daemon was not killed: %v\n%s", d.ProcessState, d.log)
			}
			next := serve("")
			defer next.stop(t)
			if aerr == nil {
				s, err := c.WaitRun(t.Context(), first.ID)
				began := point != failpoint.RunRecorded && point != failpoint.RunMade
				switch {
				case err != nil:
					t.Errorf("a run that was accepted is not known: %v", err)
				case began && (s.Result == nil || s.Result.Exit.Code != 3 || s.Result.Stdout.String() != "its input\n"):
					t.Errorf("it began: %+v", s)
				case !began && (s.Problem == nil || s.Problem.Outcome != string(isolation.NotStarted)):
					t.Errorf("it did not begin: %+v", s)
				}
			}
			s, err := c.StartRun(t.Context(), once, point)
			if err == nil {
				s, err = c.WaitRun(t.Context(), s.ID)
			}
			if err != nil || s.Result == nil || s.Result.Exit.Code != 3 || s.Result.Stdout.String() != "its input\n" {
				t.Errorf("by its key: %+v %v", s, err)
			}
			if left := h.guests(t); len(left) > 0 {
				t.Errorf("sandboxes are left: %v\n%s", left, next.log)
			}
		})
	}
	for _, pid := range pids {
		eventually(t, "its control groups to go", func() bool { return len(h.groups(t, pid)) == 0 })
		h.clean(t, pid)
	}
	for _, pattern := range []string{"sessions/*/*", "runs/*/input"} {
		if left := h.glob(t, filepath.Join(h.state, pattern)); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}
