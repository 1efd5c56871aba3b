package oci_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// freezes returns a driver whose containers can be paused.
func freezes(t *testing.T, c oci.Config) isolation.Driver {
	t.Helper()
	d := newDriver(t, c)
	if err := cgroup.Find().Freezes(); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" && os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: " + err.Error())
	}
	return d
}

func pauser(t *testing.T, sb isolation.Sandbox) isolation.Pauser {
	t.Helper()
	p, ok := isolation.As[isolation.Pauser](sb)
	if !ok {
		t.Fatal("it cannot be paused")
	}
	return p
}

// ticks is the processor time of a program in units of 10 ms (proc_pid_stat(5)).
func ticks(t *testing.T, pid int) (n int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')'):]))
	for _, s := range f[12:14] {
		used, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		n += used
	}
	return n
}

// standsStill says that a program does not go on. One that is frozen uses nothing, however
// busy the host is; its last tick may be counted late.
func standsStill(t *testing.T, pid int) {
	t.Helper()
	before := ticks(t, pid)
	time.Sleep(200 * time.Millisecond)
	if used := ticks(t, pid) - before; used > 1 {
		t.Errorf("the paused program used %d ticks", used)
	}
}

// spinning is a program of several processes that compute, the last of which comes and
// goes; it says who they are.
const spinning = `sh -c 'echo $$; while :; do :; done' & sh -c 'while :; do /bin/true; done' & echo $$; while :; do :; done`

// TestPausedStandsStill: nothing of a paused sandbox runs, not even what forks all the
// time; a program that is killed meanwhile dies alone; the others go on after it.
func TestPausedStandsStill(t *testing.T) { eachEngine(t, testPausedStandsStill) }

func testPausedStandsStill(t *testing.T, c oci.Config) {
	d := freezes(t, c)
	if c.Engine == "runsc" {
		sb, err := d.Create(t.Context(), nextID(), isolation.Spec{Requirement: isolation.Shell})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := isolation.As[isolation.Pauser](sb); ok {
			t.Error("it can be paused")
		}
		return
	}
	sb, one := start(t, d, isolation.Spec{}, isolation.ProcessSpec{}, nil, spinning)
	other := script2(t, sb, isolation.ProcessSpec{}, nil, spinning)
	p := pauser(t, sb)
	for range 3 {
		if err := p.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		standsStill(t, one.PID())
		standsStill(t, other.PID())
		if err := p.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		was := ticks(t, other.PID())
		eventually(t, "it to go on", func() bool { return ticks(t, other.PID()) > was })
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := one.Kill(t.Context(), isolation.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, one); e.Signal != isolation.SIGKILL {
		t.Errorf("it was killed: %v", e)
	}
	standsStill(t, other.PID())
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, other); e.Reason != isolation.ReasonCanceled {
		t.Errorf("its sandbox was deleted: %v", e)
	}
}

// TestPausedOutlivesItsHost: a detached sandbox stands still also while nobody has it, and
// for who finds it; its limit on wall time does not run. Who sweeps what is not to be found
// any more ends it as it is.
func TestPausedOutlivesItsHost(t *testing.T) {
	c := detached(t, oci.Config{})
	first := freezes(t, c)
	const limit = 15 * time.Second
	make := func(id string) (pid int) {
		sb, err := first.Create(t.Context(), id, isolation.Spec{Requirement: isolation.Shell, Detached: true})
		if err != nil {
			t.Fatal(err)
		}
		p, err := sb.Exec(t.Context(), isolation.ProcessSpec{
			ExecID: "x", Args: []string{"/bin/sh", "-c", "while :; do :; done"}, Limits: isolation.Limits{Wall: limit},
		}, isolation.Stdio{})
		if err == nil {
			err = pauser(t, sb).Pause(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		return p.PID()
	}
	id, gone := nextID(), nextID()
	pid, lost := make(id), make(gone)
	began := time.Now()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	standsStill(t, pid) // with no host
	standsStill(t, lost)

	second := newDriver(t, c)
	r, _ := isolation.As[isolation.Recoverer](second)
	sb, err := r.Recover(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := sb.State(t.Context()); err != nil || st.Status != isolation.StatusPaused || len(st.Execs) != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	standsStill(t, pid)
	if x, _ := isolation.As[isolation.Discarder](second); x.Discard(t.Context(), gone) != nil {
		t.Error("the other is not discarded")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", lost)); err == nil {
		t.Error("the program of a discarded sandbox is there")
	}
	if left := groupsOf(t, gone); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	time.Sleep(time.Until(began.Add(limit / 10)))
	a, _ := isolation.As[isolation.Attacher](sb)
	p, err := a.Attach(t.Context(), "x", isolation.Offsets{}, isolation.Stdio{})
	if err == nil {
		err = pauser(t, sb).Resume(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	was := ticks(t, pid)
	eventually(t, "it to go on", func() bool { return ticks(t, pid) > was })
	if err := p.Kill(t.Context(), isolation.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, p); e.Signal != isolation.SIGKILL {
		t.Errorf("%v", e)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := groupsOf(t, id); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if names, err := filepath.Glob(filepath.Join(c.SessionDir, "builtin", "*")); err != nil || len(names) > 0 {
		t.Errorf("%v, %v", names, err)
	}
}
