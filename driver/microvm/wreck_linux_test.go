package microvm_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// wreck asks the test's first process of a machine (testprog's wreck) to do
// something to it.
func wreck(t *testing.T, sb isolation.Sandbox, how string) {
	t.Helper()
	wreckSoon(t, sb, how)()
}

// wreckSoon has somebody stand ready to ask, who does at once when the function is
// called.
func wreckSoon(t *testing.T, sb isolation.Sandbox, how string) func() {
	t.Helper()
	in, now := io.Pipe()
	ready, out := io.Pipe()
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/usr/bin/python3", "-c", "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); " +
		"print('ready', flush=True); input(); s.sendto(b'" + how + "', b'\\0wreck')"}}, isolation.Stdio{Stdin: in, Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(ready).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	// Nobody may be left to tell of its end.
	go func() { _, _ = p.Wait(context.Background()) }()
	return func() { _, _ = now.Write([]byte("\n")) }
}

// TestWrecks: what ends a machine is told apart, and none of it is the program's
// own end.
func TestWrecks(t *testing.T) {
	d := newDriver(t, config(t))
	for _, c := range []struct {
		name string
		do   func(t *testing.T, sb isolation.Sandbox, p isolation.Process)
		say  string
	}{
		{"panic", func(t *testing.T, sb isolation.Sandbox, _ isolation.Process) { wreck(t, sb, "panic") }, "the guest's kernel: Kernel panic - not syncing: sysrq triggered crash"},
		{"the first process is killed", func(t *testing.T, sb isolation.Sandbox, _ isolation.Process) { wreck(t, sb, "kill") }, "the guest's kernel: Kernel panic - not syncing: Attempted to kill init!"},
		{"a console without end", func(t *testing.T, sb isolation.Sandbox, _ isolation.Process) { wreck(t, sb, "talk") }, "the guest's kernel: Kernel panic - not syncing: sysrq triggered crash"},
		{"reset", func(t *testing.T, sb isolation.Sandbox, _ isolation.Process) { wreck(t, sb, "reset") }, "the guest has switched its machine off, or reset it"},
		{"QEMU is killed", func(t *testing.T, _ isolation.Sandbox, p isolation.Process) {
			if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, "VMM was killed by signal 9"},
		{"QEMU has no more memory", func(t *testing.T, sb isolation.Sandbox, p isolation.Process) {
			limit := memoryLimit(t, p.PID())
			wrote := os.WriteFile(limit, []byte("1M"), 0)
			for range 100 { // version 1 of the groups refuses until it has taken memory back
				if wrote == nil {
					break
				}
				now, err := os.ReadFile(filepath.Join(filepath.Dir(limit), "memory.usage_in_bytes"))
				if err != nil {
					t.Fatal(err)
				}
				wrote = os.WriteFile(limit, bytes.TrimSpace(now), 0)
			}
			if wrote != nil {
				t.Fatal(wrote)
			}
			q, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", "head -c 100000000 /dev/zero | tail"}}, isolation.Stdio{})
			if err == nil { // or it is gone already
				_, _ = q.Wait(t.Context())
			}
		}, "killed the machine's VMM for want of memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sb := create(t, d, "wreck-"+strings.ReplaceAll(c.name, " ", "-"), isolation.Spec{})
			p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sleep", "1000"}}, isolation.Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			c.do(t, sb, p)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			e, err := p.Wait(ctx)
			if err != nil || e.Reason != isolation.ReasonSandboxLost || !strings.Contains(e.Detail, c.say) {
				t.Errorf("%v, %v: want %q", e, err, c.say)
			}
			if len(e.Detail) > 500 || strings.ContainsAny(e.Detail, "\n\r\x1b\a") || e.Code != -1 || e.Usage.PeakMemoryBytes != -1 {
				t.Errorf("%+v", e)
			}
			_, err = sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/true"}}, isolation.Stdio{})
			if isolation.OutcomeOf(err) != isolation.NotStarted || !errors.Is(err, isolation.ErrFailedPrecondition) {
				t.Errorf("a machine that is gone: %v", err)
			}
			if st, err := sb.State(t.Context()); err != nil || st.Status != isolation.StatusStopped {
				t.Errorf("%v, %v", st, err)
			}
		})
	}
}

// memoryLimit is the file with the memory limit of a process's control group.
func memoryLimit(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, name := range []string{
			"/sys/fs/cgroup/memory" + f[2] + "/memory.limit_in_bytes", "/sys/fs/cgroup" + f[2] + "/memory.max", "/sys/fs/cgroup/unified" + f[2] + "/memory.max",
		} {
			if strings.HasSuffix(name, "limit_in_bytes") && !strings.Contains(","+f[1]+",", ",memory,") {
				continue
			}
			if _, err := os.Stat(name); err == nil {
				return name
			}
		}
	}
	missing(t, "control groups with memory")
	return ""
}

// TestWedged: a guest that does nothing any more does not keep its programs, or
// itself, from being ended.
func TestWedged(t *testing.T) {
	d := newDriver(t, config(t))
	for _, how := range []string{"freeze", "spin"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			sb := create(t, d, "wedged-"+how, isolation.Spec{})
			now := wreckSoon(t, sb, how)
			p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sleep", "1000"}, Limits: isolation.Limits{Wall: 3 * time.Second}}, isolation.Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			now()
			e, err := p.Wait(t.Context())
			if err != nil || e.Reason != isolation.ReasonTimeoutWall {
				t.Errorf("%v, %v", e, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"/bin/true"}}, isolation.Stdio{}); err == nil || ctx.Err() != nil {
				t.Errorf("something is started in it: %v", err)
			}
		})
		t.Run(how+" and delete", func(t *testing.T) {
			t.Parallel()
			sb := create(t, d, "wedged-deleted-"+how, isolation.Spec{})
			p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sleep", "1000"}}, isolation.Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			wreck(t, sb, how)
			// It may be wedged by now, or not yet.
			started := make(chan struct{})
			go func() {
				defer close(started)
				for { // until there is nothing to start in
					q, err := sb.Exec(context.Background(), isolation.ProcessSpec{Args: []string{"/bin/true"}}, isolation.Stdio{})
					if err != nil {
						return
					}
					if _, err := q.Wait(context.Background()); err != nil {
						return
					}
				}
			}()
			time.Sleep(time.Second)
			if err := sb.Delete(t.Context()); err != nil {
				t.Error(err)
			}
			<-started
			if e, err := p.Wait(t.Context()); err != nil || e.Reason != isolation.ReasonCanceled {
				t.Errorf("%v, %v", e, err)
			}
		})
	}
}

// TestMemoryOfWhom: a program that runs into its sandbox's limit is told apart
// from one that runs into the machine's memory, which is no limit of its own. Of
// neither does the machine die.
func TestMemoryOfWhom(t *testing.T) {
	d := newDriver(t, config(t))
	for _, c := range []struct {
		name  string
		limit int64
		value int64
	}{{"limit", 48 << 20, 48 << 20}, {"machine", 0, machineMiB << 20}} {
		t.Run(c.name, func(t *testing.T) {
			sb := create(t, d, "memory-"+c.name, isolation.Spec{Resources: isolation.Resources{MemoryBytes: c.limit}})
			p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/usr/bin/python3", "-c", "l = []\nwhile True: l.append(bytearray(1 << 20))"}}, isolation.Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			e, err := p.Wait(t.Context())
			if err != nil || e.Reason != isolation.ReasonOOM || len(e.LimitsHit) != 1 || e.LimitsHit[0].Limit != isolation.LimitMemory || e.LimitsHit[0].Value != c.value ||
				strings.Contains(e.Detail, fmt.Sprintf("all %d MiB of the machine", machineMiB)) != (c.limit == 0) {
				t.Errorf("%v, %v, %+v, want oom at %d", e, err, e.LimitsHit, c.value)
			}
			if out, e := sh(t, sb, "echo still here"); out != "still here\n" {
				t.Errorf("the machine after it: %v, %q", e, out)
			}
		})
	}
}
