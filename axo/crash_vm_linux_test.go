package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// socketDirs lists the directories of sockets that the machines of an axo have.
func (h *host) socketDirs(t *testing.T, pid int) []string {
	return h.glob(t, fmt.Sprintf("/run/axo/microvm/%d.*", pid))
}

// machines lists the QEMUs of an axo: by their control group, or by what they
// have open of the state directory.
func (h *host) machines(t *testing.T, pid int) (list []string) {
	t.Helper()
	for _, comm := range h.glob(t, "/proc/[0-9]*/comm") {
		if b, err := os.ReadFile(comm); err != nil || !strings.HasPrefix(string(b), "qemu") {
			continue
		}
		dir := filepath.Dir(comm)
		group, _ := os.ReadFile(dir + "/cgroup") // it may be gone
		ours := strings.Contains(string(group), fmt.Sprintf("-%d-", pid))
		for _, fd := range h.glob(t, dir+"/fd/*") {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, h.state) {
				ours = true
			}
		}
		if ours {
			list = append(list, dir)
		}
	}
	return list
}

// die runs axo until it is killed at a point, and returns its process id.
func (h *host) die(t *testing.T, point string, args ...string) int {
	t.Helper()
	cmd := exec.Command(filepath.Join(h.dir, "axo"), args...)
	cmd.Env = append(os.Environ(), "AXO_FAILPOINT="+point, "AXO_STATE_DIR="+h.state)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("was not killed: %v\n%s", err, out)
	}
	return cmd.Process.Pid
}

// works runs something in a virtual machine. On a busy host a probe may take too
// long a few times.
func (h *host) works(t *testing.T) {
	t.Helper()
	for tries := 1; ; tries++ {
		out, err := h.axo("--tier", "microvm", "--allow-emulated", "--", "/bin/sh", "-c", "echo works").CombinedOutput()
		if err == nil && string(out) == "works\n" {
			return
		}
		if tries == 20 || !strings.Contains(string(out), "no answer within") {
			t.Fatalf("%v %s", err, out)
		}
	}
}

// newVMHost is a host with the template that tests share. Its axo-guest is that of
// a release: the template was made with it.
func newVMHost(t *testing.T) *host {
	t.Helper()
	testprog.Root(t, "looks at processes of the user nobody")
	h := newHost(t, "failpoint")
	guest := testprog.Guest(t)
	t.Setenv("AXO_GUEST_PATH", guest)
	testvm.Link(t, h.state, guest)
	return h
}

// TestMachineKilledAtEachFailpoint kills axo at every point of a run in a virtual
// machine. QEMU dies with it, and the next axo removes the rest.
func TestMachineKilledAtEachFailpoint(t *testing.T) {
	h := newVMHost(t)
	// Now it is known that the tier works: what dies is a run, and not a probe.
	h.works(t)
	for _, point := range failpoint.VM {
		t.Run(point, func(t *testing.T) {
			pid := h.die(t, point, "run", "--tier", "microvm", "--allow-emulated", "--", "/bin/sh", "-c", "sleep 86399 & sleep 0.1")
			if made := point != failpoint.VMRecorded && point != failpoint.VMGroup && point != failpoint.VMRemoved && point != failpoint.Deleted &&
				point != failpoint.JournalHalf; made && len(h.socketDirs(t, pid)) == 0 {
				t.Error("there was nothing to sweep")
			}
			eventually(t, "QEMU to die with its host", func() bool { return len(h.machines(t, pid)) == 0 })
			h.sweep(t, pid)
			if left := h.socketDirs(t, pid); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestTemplateKilledAtEachFailpoint kills axo at every point of the build of a
// template. What is listed is whole, before and after, and nothing else is left.
func TestTemplateKilledAtEachFailpoint(t *testing.T) {
	h := newVMHost(t)
	templates := filepath.Join(h.state, all.TemplatesDir)
	if err := os.Remove(templates); err != nil { // none that others share
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"bin", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile(testprog.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/sh"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	list := func() string {
		t.Helper()
		cmd := exec.Command(filepath.Join(h.dir, "axo"), "template", "ls")
		cmd.Env = append(os.Environ(), "AXO_STATE_DIR="+h.state)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return string(out)
	}
	build := []string{"template", "build", "default", "--rootfs", root, "--memory", "192", "--accel", "tcg"}
	check := func(point string, there bool) string {
		t.Helper()
		pid := h.die(t, point, build...)
		eventually(t, "QEMU to die with its host", func() bool { return len(h.machines(t, pid)) == 0 })
		now := list()
		if strings.Contains(now, "default") != there {
			t.Errorf("%s: listed are %q", point, now)
		}
		h.sweep(t, pid)
		if left := append(h.socketDirs(t, pid), h.glob(t, filepath.Join(templates, ".*"))...); len(left) > 0 {
			t.Errorf("%s: left: %v", point, left)
		}
		if after := list(); after != now {
			t.Errorf("%s: listed are %q, and were %q", point, after, now)
		}
		return now
	}
	for _, point := range failpoint.Template {
		check(point, point == failpoint.VMPlaced)
	}
	// And where there is one already.
	old := list()
	if now := check(failpoint.VMWhole, true); now != old {
		t.Errorf("the old one is %q, was %q", now, old)
	}
	if now := check(failpoint.VMPlaced, true); now == old {
		t.Errorf("the new one is %q, like the old one", now)
	}
	// It is one that works.
	h.works(t)
}
