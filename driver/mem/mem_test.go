package mem_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
)

func create(t *testing.T, d *mem.Driver, spec isolation.Spec) isolation.Sandbox {
	t.Helper()
	if spec.Requirement == 0 {
		spec.Requirement = isolation.Shell
	}
	sb, err := d.Create(t.Context(), "sb", spec)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func run(t *testing.T, sb isolation.Sandbox, ps isolation.ProcessSpec, stdio isolation.Stdio) isolation.Exit {
	t.Helper()
	p, err := sb.Exec(t.Context(), ps, stdio)
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// with makes a driver that has one more program, called "p".
func with(t *testing.T, p mem.Program) *mem.Driver {
	t.Helper()
	d := mem.New(mem.Config{Programs: map[string]mem.Program{"p": p}})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if sandboxes, programs := d.Live(); sandboxes != 0 || programs != 0 {
			t.Errorf("after Close, %d sandboxes and %d programs are left", sandboxes, programs)
		}
	})
	return d
}

var p = isolation.ProcessSpec{Args: []string{"p"}}

// TestFakeTime runs in a bubble of fake time: hours pass at once, and limits
// are exact.
func TestFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mem.New(mem.Config{})
		sb := create(t, d, isolation.Spec{})
		e := run(t, sb, isolation.ProcessSpec{Args: []string{"sleep", "7200"}, Limits: isolation.Limits{Wall: time.Hour}}, isolation.Stdio{})
		if e.Reason != isolation.ReasonTimeoutWall || e.Usage.Wall != time.Hour {
			t.Errorf("%v after %v, want a timeout after an hour", e, e.Usage.Wall)
		}
		e = run(t, sb, isolation.ProcessSpec{Args: []string{"spin"}, Limits: isolation.Limits{CPU: time.Minute}}, isolation.Stdio{})
		if e.Reason != isolation.ReasonTimeoutCPU || e.Usage.CPU != time.Minute {
			t.Errorf("%v after %v, want a timeout after a minute", e, e.Usage.CPU)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestPauseStopsTheClock has the limit on wall time stand still.
func TestPauseStopsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mem.New(mem.Config{})
		defer d.Close()
		sb := create(t, d, isolation.Spec{})
		proc, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sleep", "60"}, Limits: isolation.Limits{Wall: 10 * time.Second}}, isolation.Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		pauser, _ := isolation.As[isolation.Pauser](sb)
		time.Sleep(4 * time.Second)
		if err := pauser.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := pauser.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		resumed := time.Now()
		e, err := proc.Wait(t.Context())
		// The program wakes up at once, its sleep being over.
		if err != nil || !e.Success() || time.Since(resumed) != 0 {
			t.Errorf("%v, %v after %v", e, err, time.Since(resumed))
		}
		proc, err = sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"spin"}, Limits: isolation.Limits{Wall: 10 * time.Second}}, isolation.Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		if err := errors.Join(pauser.Pause(t.Context()), pauser.Resume(t.Context())); err != nil {
			t.Fatal(err)
		}
		resumed = time.Now()
		if e, err = proc.Wait(t.Context()); err != nil || e.Reason != isolation.ReasonTimeoutWall || time.Since(resumed) != 6*time.Second {
			t.Errorf("%v, %v after %v, want a timeout after what was left", e, err, time.Since(resumed))
		}
	})
}

func TestReasons(t *testing.T) {
	for want, program := range map[isolation.Reason]mem.Program{
		isolation.ReasonExited:       func(*mem.Proc) int { return 3 },
		isolation.ReasonSignaled:     func(c *mem.Proc) int { c.Raise(isolation.SIGSEGV); return 0 },
		isolation.ReasonTrap:         func(c *mem.Proc) int { c.Trap("divide by zero"); return 0 },
		isolation.ReasonPolicyDenied: func(c *mem.Proc) int { c.Deny("socket"); return 0 },
		isolation.ReasonOOM: func(c *mem.Proc) int {
			if c.Alloc(2000) {
				return 0
			}
			return 1
		},
	} {
		d := with(t, program)
		sb := create(t, d, isolation.Spec{Resources: isolation.Resources{MemoryBytes: 1000}})
		if e := run(t, sb, p, isolation.Stdio{}); e.Reason != want {
			t.Errorf("%v, want %s", e, want)
		}
	}
}

func TestPanicIsATrap(t *testing.T) {
	d := with(t, func(*mem.Proc) int { panic("first line\nsecond line") })
	e := run(t, create(t, d, isolation.Spec{}), p, isolation.Stdio{})
	if e.Reason != isolation.ReasonTrap || e.Detail != "panic: first line" {
		t.Errorf("%v", e)
	}
}

// TestRefusedMemory has a program that copes: what it ran into is told, and
// that it exited 0 too.
func TestRefusedMemory(t *testing.T) {
	d := with(t, func(c *mem.Proc) int {
		if c.Alloc(600) && !c.Alloc(600) && !c.Alloc(600) {
			return 0
		}
		return 1
	})
	e := run(t, create(t, d, isolation.Spec{Resources: isolation.Resources{MemoryBytes: 1000}}), p, isolation.Stdio{})
	want := []isolation.LimitHit{{Limit: isolation.LimitMemory, Count: 2, Value: 1000}}
	if !e.Success() || !slices.Equal(e.LimitsHit, want) || e.Usage.PeakMemoryBytes != 600 {
		t.Errorf("%v, limits hit %v, peak %d", e, e.LimitsHit, e.Usage.PeakMemoryBytes)
	}
}

// TestAbandoned has a program that does not listen: it can't be killed, and
// holds up nobody for long.
func TestAbandoned(t *testing.T) {
	hold := make(chan struct{})
	d := with(t, func(*mem.Proc) int { <-hold; return 0 })
	sb := create(t, d, isolation.Spec{})
	ps := p
	ps.Limits.Wall = time.Millisecond
	e := run(t, sb, ps, isolation.Stdio{})
	if e.Reason != isolation.ReasonTimeoutWall || !strings.Contains(e.Detail, "still runs") {
		t.Errorf("%v", e)
	}
	// It is there, and Delete does not say otherwise.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := sb.Delete(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Delete: %v", err)
	}
	close(hold)
	if err := sb.Delete(t.Context()); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

func TestContextEnds(t *testing.T) {
	d := with(t, func(c *mem.Proc) int { <-c.Context().Done(); return 0 })
	sb := create(t, d, isolation.Spec{})
	proc, err := sb.Exec(t.Context(), p, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if e, err := proc.Wait(t.Context()); err != nil || e.Reason != isolation.ReasonCanceled {
		t.Errorf("%v, %v", e, err)
	}
}

var errFault = errors.New("injected")

func TestFaults(t *testing.T) {
	d := mem.New(mem.Config{})
	sb := create(t, d, isolation.Spec{})
	proc, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"exit0"}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	d.SetFaults(mem.Faults{
		Probe:  func(context.Context) error { return isolation.ErrUnavailable },
		Create: func(context.Context, string, isolation.Spec) error { return errFault },
		Exec:   func(context.Context, string, isolation.ProcessSpec) error { return errFault },
		Wait:   func(context.Context, string) error { return errFault },
		Delete: func(context.Context, string) error { return errFault },
		Close:  func() error { return errFault },
	})
	f, err := d.Probe(t.Context())
	if !errors.Is(err, isolation.ErrUnavailable) || f.Engine != "mem" || len(f.Runs) == 0 || len(f.Enforces) != 0 {
		t.Errorf("Probe: %+v, %v", f, err)
	}
	if _, err := d.Create(t.Context(), "other", isolation.Spec{Requirement: isolation.Shell}); !errors.Is(err, errFault) {
		t.Errorf("Create: %v", err)
	}
	if _, err := sb.Exec(t.Context(), p, isolation.Stdio{}); !errors.Is(err, errFault) || isolation.OutcomeOf(err) != isolation.NotStarted {
		t.Errorf("Exec: %v", err)
	}
	if _, err := proc.Wait(t.Context()); !errors.Is(err, errFault) || isolation.OutcomeOf(err) != isolation.OutcomeUnknown {
		t.Errorf("Wait: %v", err)
	}
	if err := sb.Delete(t.Context()); !errors.Is(err, errFault) {
		t.Errorf("Delete: %v", err)
	}
	if err := d.Close(); !errors.Is(err, errFault) {
		t.Errorf("Close: %v", err)
	}
	if n, _ := d.Live(); n != 0 {
		t.Errorf("after Close, %d sandboxes are left", n)
	}
}

// TestBlockedCreate has Create blocked by a hook: its ctx ends it, and nothing
// is left.
func TestBlockedCreate(t *testing.T) {
	d := mem.New(mem.Config{})
	defer d.Close()
	d.SetFaults(mem.Faults{Create: func(ctx context.Context, _ string, _ isolation.Spec) error {
		<-ctx.Done()
		return nil // also a hook that hides it
	}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := d.Create(ctx, "sb", isolation.Spec{Requirement: isolation.Shell}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Create: %v", err)
	}
	if n, _ := d.Live(); n != 0 {
		t.Errorf("%d sandboxes are left", n)
	}
	d.SetFaults(mem.Faults{})
	create(t, d, isolation.Spec{})
}

func TestFeatures(t *testing.T) {
	d := mem.New(mem.Config{Name: "py", Features: func(f *isolation.Features) {
		f.Tier, f.Interpreted, f.Languages = isolation.TierWASM, true, []string{"python"}
	}})
	defer d.Close()
	f, err := d.Probe(t.Context())
	if err != nil || f.Tier != isolation.TierWASM || f.Engine != "py" || d.Name() != "py" {
		t.Errorf("%+v, %v", f, err)
	}
	f.Runs[0], f.Enforces[0].Enforced = isolation.NativeTrusted, false
	if again, _ := d.Probe(t.Context()); again.Runs[0] == isolation.NativeTrusted || !again.Enforces[0].Enforced {
		t.Error("a caller changed the driver's features")
	}
	for spec, want := range map[*isolation.Spec]error{
		{Requirement: isolation.Python}:                                  nil,
		{Requirement: isolation.Shell}:                                   isolation.ErrUnsupported,
		{Requirement: isolation.Arbitrary, Language: "lua"}:              isolation.ErrUnsupported,
		{Requirement: isolation.Arbitrary, Language: "python"}:           nil,
		{Requirement: isolation.NativeTrusted, Func: "no-such"}:          isolation.ErrNotFound,
		{Requirement: isolation.NativeTrusted, Func: "exit7"}:            nil,
		{Requirement: isolation.Python, Hostname: "h", Tenant: "a"}:      nil,
		{Requirement: isolation.Python, Root: isolation.Root{Path: "/"}}: isolation.ErrUnsupported,
	} {
		sb, err := d.Create(t.Context(), "sb", *spec)
		if isolation.Class(err) != want {
			t.Errorf("%+v: %v, want %v", *spec, err, want)
		}
		if err == nil {
			_ = sb.Delete(t.Context())
		}
	}
}

func TestFunc(t *testing.T) {
	d := mem.New(mem.Config{})
	defer d.Close()
	sb := create(t, d, isolation.Spec{Requirement: isolation.NativeTrusted, Func: "args"})
	var out bytes.Buffer
	if e := run(t, sb, isolation.ProcessSpec{Args: []string{"any name", "x"}}, isolation.Stdio{Stdout: &out}); !e.Success() || out.String() != "x\x00" {
		t.Errorf("%v, %q", e, out.String())
	}
}

func TestImpossibleFeatures(t *testing.T) {
	for name, change := range map[string]func(*isolation.Features){
		"ability": func(f *isolation.Features) { f.Abilities = append(f.Abilities, isolation.AbilityPrepare) },
		"limit": func(f *isolation.Features) {
			f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: isolation.LimitCPUs, Enforced: true})
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: New took what mem does not have", name)
				}
			}()
			mem.New(mem.Config{Features: change})
		}()
	}
}

// TestRetain checks what is held for Attach: at least as much as was asked for,
// and a bounded amount.
func TestRetain(t *testing.T) {
	const retain = 1000
	d := mem.New(mem.Config{Retain: retain})
	defer d.Close()
	sb := create(t, d, isolation.Spec{})
	const n = 1 << 20
	ps := isolation.ProcessSpec{ExecID: "e", Args: []string{"flood", "1048576"}}
	run(t, sb, ps, isolation.Stdio{})
	a, _ := isolation.As[isolation.Attacher](sb)
	var out bytes.Buffer
	proc, err := a.Attach(t.Context(), "e", isolation.Offsets{Stdout: n - retain}, isolation.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	e, err := proc.Wait(t.Context())
	if err != nil || out.Len() != retain || e.Stdout != (isolation.Output{Bytes: n}) {
		t.Errorf("%+v, %v, %d bytes", e.Stdout, err, out.Len())
	}
	if _, err = a.Attach(t.Context(), "e", isolation.Offsets{Stdout: n - 1<<18}, isolation.Stdio{}); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("Attach to what is not held: %v", err)
	}
	if _, err = a.Attach(t.Context(), "e", isolation.Offsets{Stdout: n}, isolation.Stdio{Stdin: strings.NewReader("")}); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("Attach with stdin: %v", err)
	}
}

func TestSurvivors(t *testing.T) {
	d := mem.New(mem.Config{})
	sb := create(t, d, isolation.Spec{})
	e := run(t, sb, isolation.ProcessSpec{Args: []string{"survivors", "3"}}, isolation.Stdio{})
	if _, programs := d.Live(); e.Survivors != 3 || programs != 3 {
		t.Errorf("%d survivors, %d programs", e.Survivors, programs)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if sandboxes, programs := d.Live(); sandboxes != 0 || programs != 0 {
		t.Errorf("after Delete, %d sandboxes and %d programs are left", sandboxes, programs)
	}
}

func TestLose(t *testing.T) {
	d := mem.New(mem.Config{})
	defer d.Close()
	if d.Lose("sb", "") {
		t.Error("a sandbox was lost that is not there")
	}
	sb := create(t, d, isolation.Spec{})
	proc, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sleep", "60"}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if !d.Lose("sb", "power cut") {
		t.Error("the sandbox was not found")
	}
	if e, err := proc.Wait(t.Context()); err != nil || e.Reason != isolation.ReasonSandboxLost || e.Detail != "power cut" {
		t.Errorf("%v, %v", e, err)
	}
	if st, err := sb.State(t.Context()); err != nil || st.Status != isolation.StatusStopped {
		t.Errorf("%+v, %v", st, err)
	}
}
