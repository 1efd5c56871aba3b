package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup makes an engine over one driver of tier WASM.
func setup(t testing.TB, c engine.Config) (*engine.Engine, *mem.Driver) {
	t.Helper()
	d := mem.New(mem.Config{Name: "wazero", Features: func(f *isolation.Features) { f.Tier = isolation.TierWASM }})
	c.Registry.Add(isolation.TierWASM, d)
	e, err := engine.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if s, p := d.Live(); s+p > 0 {
			t.Errorf("%d sandboxes and %d programs are left", s, p)
		}
	})
	return e, d
}

func request(args ...string) engine.Request {
	return engine.Request{
		Spec:    isolation.Spec{Requirement: isolation.WasmCompiled, Module: isolation.Module{Path: "x.wasm"}},
		Process: isolation.ProcessSpec{Args: args}, Capture: engine.DefaultCapture,
	}
}

func TestRun(t *testing.T) {
	var events []engine.EventKind
	e, _ := setup(t, engine.Config{OnEvent: func(ev engine.Event) { events = append(events, ev.Kind) }})
	r := request("echo")
	r.Stdin = strings.NewReader("hello")
	var live bytes.Buffer
	r.Stdout = &live
	res, err := e.Run(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if !res.Exit.Success() || res.Stdout.String() != "hello" || live.String() != "hello" || res.StdoutBytes != 5 || res.Truncated {
		t.Errorf("%+v", res)
	}
	if res.Tier != isolation.TierWASM || res.Engine != "wazero" || res.ID == "" {
		t.Errorf("%v %s %q", res.Tier, res.Engine, res.ID)
	}
	want := []engine.EventKind{engine.EventAdmitted, engine.EventChosen, engine.EventCreated, engine.EventStarted, engine.EventExited, engine.EventDeleted}
	if !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
	var j map[string]any
	b, err := json.Marshal(res)
	if err != nil || json.Unmarshal(b, &j) != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"id", "tier", "engine", "decision", "exit", "stdout", "stderr", "stdout_bytes", "stderr_bytes", "truncated", "usage"} {
		if _, ok := j[k]; !ok {
			t.Errorf("JSON has no %q: %s", k, b)
		}
	}
}

func TestTruncationIsTold(t *testing.T) {
	e, _ := setup(t, engine.Config{StateDir: filepath.Join(t.TempDir(), "state")})
	r := request("flood", "100000")
	r.Capture = engine.Capture{Head: 10, Tail: 10, SpillBytes: 50000}
	res, err := e.Run(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if !res.Truncated || res.StdoutBytes != 100000 || len(res.Stdout.Head) != 10 || res.Stdout.Omitted != 99980 {
		t.Errorf("%+v", res)
	}
	if info, err := os.Stat(res.StdoutFile); err != nil || info.Size() != 50000 || info.Mode().Perm() != 0o600 {
		t.Errorf("spill file %s: %v", res.StdoutFile, err)
	}
}

func TestCancelKeepsTheOutputSoFar(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	e, _ := setup(t, engine.Config{})
	r := request("ready", "3600")
	r.Stdout = writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
	res, err := e.Run(ctx, r)
	if err != nil || res.Exit.Reason != isolation.ReasonCanceled || res.Stdout.String() != "ready\n" {
		t.Errorf("%+v %v", res, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestDefaultsAndBounds(t *testing.T) {
	e, _ := setup(t, engine.Config{Policy: engine.Policy{
		DefaultLimits: isolation.Limits{Wall: 50 * time.Millisecond}, MaxLimits: isolation.Limits{Wall: time.Minute},
	}})
	res, err := e.Run(context.Background(), request("sleep", "3600"))
	if err != nil || res.Exit.Reason != isolation.ReasonTimeoutWall {
		t.Errorf("default wall limit: %+v %v", res, err)
	}
	r := request("exit0")
	r.Process.Limits.Wall = time.Hour
	if _, err := e.Run(context.Background(), r); !errors.Is(err, isolation.ErrPermissionDenied) {
		t.Errorf("more than the policy's: %v", err)
	}
}

func TestFailuresSayWhetherItRan(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		faults  mem.Faults
		outcome isolation.Outcome
	}{
		"create": {mem.Faults{Create: func(context.Context, string, isolation.Spec) error { return boom }}, isolation.NotStarted},
		"exec":   {mem.Faults{Exec: func(context.Context, string, isolation.ProcessSpec) error { return boom }}, isolation.NotStarted},
		"wait":   {mem.Faults{Wait: func(context.Context, string) error { return boom }}, isolation.OutcomeUnknown},
		"delete": {mem.Faults{Delete: func(context.Context, string) error { return boom }}, isolation.OutcomeUnknown},
	} {
		e, d := setup(t, engine.Config{})
		d.SetFaults(c.faults)
		_, err := e.Run(context.Background(), request("exit0"))
		if !errors.Is(err, boom) || isolation.OutcomeOf(err) != c.outcome {
			t.Errorf("%s: %v, outcome %s, want %s", name, err, isolation.OutcomeOf(err), c.outcome)
		}
		d.SetFaults(mem.Faults{})
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	e, _ := setup(t, engine.Config{})
	if _, err := e.Run(context.Background(), engine.Request{}); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("empty request: %v", err)
	}
}

// TestWhatIsKnownComesWithAFailure: the output that came is not lost when the
// program's end was not seen, nor its Exit when its sandbox cannot be removed.
func TestWhatIsKnownComesWithAFailure(t *testing.T) {
	boom := errors.New("boom")
	var events []string
	e, d := setup(t, engine.Config{
		StateDir: filepath.Join(t.TempDir(), "state"),
		OnEvent:  func(ev engine.Event) { events = append(events, string(ev.Kind)+" "+ev.Fields["outcome"]) },
	})
	run := func(f mem.Faults) (*engine.Result, error) {
		events = nil
		d.SetFaults(f)
		defer d.SetFaults(mem.Faults{})
		r := request("echo")
		r.Capture.SpillBytes = 100
		r.Stdin = strings.NewReader("so far")
		return e.Run(context.Background(), r)
	}
	res, err := run(mem.Faults{Delete: func(context.Context, string) error { return boom }})
	if !errors.Is(err, boom) || res == nil || res.Stdout.String() != "so far" || !res.Exit.Success() {
		t.Errorf("not removed: %+v %v", res, err)
	}
	if want := []string{"admitted ", "chosen ", "created ", "started ", "exited ", "failed outcome_unknown"}; !slices.Equal(events, want) {
		t.Errorf("not removed: events %q", events)
	}
	res, err = run(mem.Faults{Wait: func(context.Context, string) error { return boom }})
	if !errors.Is(err, boom) || res == nil || res.Exit.Reason != "" || res.Exit.Code != -1 || res.StdoutBytes != int64(len(res.Stdout.String())) {
		t.Errorf("end not seen: %+v %v", res, err)
	}
	if _, serr := os.Stat(res.StdoutFile); serr != nil {
		t.Errorf("the spill file of a result is gone: %v", serr)
	}
	if res, err = run(mem.Faults{Exec: func(context.Context, string, isolation.ProcessSpec) error { return boom }}); err == nil || res != nil {
		t.Errorf("never started: %+v %v", res, err)
	}
	if want := []string{"admitted ", "chosen ", "created ", "deleted ", "failed not_started"}; !slices.Equal(events, want) {
		t.Errorf("never started: events %q", events)
	}
	_, err = e.Run(context.Background(), engine.Request{Spec: isolation.Spec{Requirement: isolation.Shell}, Process: isolation.ProcessSpec{Args: []string{"sh"}}})
	var refused *engine.RefusedError
	if !errors.As(err, &refused) || isolation.OutcomeOf(err) != isolation.NotStarted {
		t.Errorf("refused: %v, outcome %s", err, isolation.OutcomeOf(err))
	}
	if last := events[len(events)-1]; last != "refused not_started" {
		t.Errorf("refused: events %q", events)
	}
	// The sandboxes that could not be removed go with the driver.
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// resizing is a driver whose processes have a terminal's size.
type resizing struct {
	isolation.Driver
	sizes chan isolation.TerminalSize
}

type resizingSandbox struct {
	isolation.Sandbox
	sizes chan isolation.TerminalSize
}

type resizingProcess struct {
	isolation.Process
	sizes chan isolation.TerminalSize
}

func (d resizing) Create(ctx context.Context, id string, s isolation.Spec) (isolation.Sandbox, error) {
	sb, err := d.Driver.Create(ctx, id, s)
	return resizingSandbox{sb, d.sizes}, err
}

func (s resizingSandbox) Exec(ctx context.Context, p isolation.ProcessSpec, io isolation.Stdio) (isolation.Process, error) {
	pr, err := s.Sandbox.Exec(ctx, p, io)
	return resizingProcess{pr, s.sizes}, err
}

func (p resizingProcess) Resize(_ context.Context, size isolation.TerminalSize) error {
	p.sizes <- size
	return nil
}

func TestResize(t *testing.T) {
	got := make(chan isolation.TerminalSize)
	var reg isolation.Registry
	reg.Add(isolation.TierWASM, resizing{mem.New(mem.Config{Name: "wazero", Features: func(f *isolation.Features) { f.Tier = isolation.TierWASM }}), got})
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx, cancel := context.WithCancel(context.Background())
	sizes := make(chan isolation.TerminalSize)
	r := request("sleep", "3600")
	r.Resize = sizes
	ended := make(chan error)
	go func() {
		_, err := e.Run(ctx, r)
		ended <- err
	}()
	for _, want := range []isolation.TerminalSize{{Rows: 24, Cols: 80}, {Rows: 50, Cols: 132}} {
		sizes <- want
		if size := <-got; size != want {
			t.Errorf("size %v, want %v", size, want)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestPolicyIsValidated(t *testing.T) {
	for name, p := range map[string]engine.Policy{
		"max wall":        {MaxLimits: isolation.Limits{Wall: -1}},
		"admission":       {Admission: -1},
		"default memory":  {DefaultResources: isolation.Resources{MemoryBytes: -1}},
		"default wall":    {DefaultLimits: isolation.Limits{Wall: -1}},
		"default too big": {DefaultLimits: isolation.Limits{Wall: time.Hour}, MaxLimits: isolation.Limits{Wall: time.Minute}},
	} {
		if _, err := engine.New(engine.Config{Policy: p}); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mem.New(mem.Config{Name: "wazero", Features: func(f *isolation.Features) { f.Tier = isolation.TierWASM }})
		var reg isolation.Registry
		reg.Add(isolation.TierWASM, d)
		e, err := engine.New(engine.Config{Registry: reg, MaxRuns: 1, MaxQueue: 1, Policy: engine.Policy{Admission: time.Second}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = e.Run(ctx, request("sleep", "3600")) })
		synctest.Wait()
		wg.Go(func() {
			if _, err := e.Run(context.Background(), request("exit0")); !errors.Is(err, isolation.ErrResourceExhausted) {
				t.Errorf("waited longer than admitted: %v", err)
			}
		})
		synctest.Wait()
		if _, err := e.Run(context.Background(), request("exit0")); !errors.Is(err, isolation.ErrResourceExhausted) || !strings.Contains(err.Error(), "retry") {
			t.Errorf("full queue: %v", err)
		}
		time.Sleep(2 * time.Second)
		cancel()
		wg.Wait()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestProbesAreKeptAndFailuresExpire(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	now := time.Now()
	clock := func() time.Time { return now }
	var probes atomic.Int32
	fail := errors.New("not today")
	run := func(t *testing.T, e *engine.Engine) error {
		_, err := e.Run(context.Background(), request("exit0"))
		return err
	}
	e, d := setup(t, engine.Config{StateDir: state, Now: clock})
	d.SetFaults(mem.Faults{Probe: func(context.Context) error { probes.Add(1); return fail }})
	for range 3 {
		if err := run(t, e); !errors.Is(err, isolation.ErrUnsupported) {
			t.Fatal(err)
		}
	}
	if n := probes.Load(); n != 1 {
		t.Errorf("%d probes within a minute, want 1", n)
	}
	now = now.Add(61 * time.Second)
	d.SetFaults(mem.Faults{Probe: func(context.Context) error { probes.Add(1); return nil }})
	if err := run(t, e); err != nil || probes.Load() != 2 {
		t.Errorf("after a minute: %v, %d probes", err, probes.Load())
	}
	// Another process finds the success on disk.
	e2, d2 := setup(t, engine.Config{StateDir: state, Now: clock})
	d2.SetFaults(mem.Faults{Probe: func(context.Context) error { probes.Add(1); return nil }})
	if err := run(t, e2); err != nil || probes.Load() != 2 {
		t.Errorf("from disk: %v, %d probes", err, probes.Load())
	}
	if rep := e2.Doctor(context.Background()); len(rep) != 1 || !rep[0].OK || probes.Load() != 3 {
		t.Errorf("doctor: %+v, %d probes", rep, probes.Load())
	}
	// What was probed with other rights is no answer.
	files, err := filepath.Glob(filepath.Join(state, "probes", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	kept, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{`"rights":"`, `"rights":"x`}, {`"boot":"`, `"boot":"x`}, {`"tier":"wasm"`, `"tier":"oci"`}} {
		was := probes.Load()
		other := strings.Replace(string(kept), c[0], c[1], 1)
		if other == string(kept) {
			t.Fatalf("no %s in %s", c[0], kept)
		}
		if err := os.WriteFile(files[0], []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		o, d := setup(t, engine.Config{StateDir: state, Now: clock})
		d.SetFaults(mem.Faults{Probe: func(context.Context) error { probes.Add(1); return nil }})
		if err := run(t, o); err != nil || probes.Load() != was+1 {
			t.Errorf("with another %s: %v, %d probes, want one more than %d", c[0], err, probes.Load(), was)
		}
	}
	// Nor is what others may have written.
	if err := os.WriteFile(files[0], kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(files[0]), 0o777); err != nil {
		t.Fatal(err)
	}
	was := probes.Load()
	o, od := setup(t, engine.Config{StateDir: state, Now: clock})
	od.SetFaults(mem.Faults{Probe: func(context.Context) error { probes.Add(1); return nil }})
	if err := run(t, o); err != nil || runtime.GOOS == "linux" && probes.Load() != was+1 {
		t.Errorf("others can write: %v, %d probes, want one more than %d", err, probes.Load(), was)
	}
	if err := os.Chmod(filepath.Dir(files[0]), 0o700); err != nil {
		t.Fatal(err)
	}
	probes.Store(3)
	// A damaged file is no answer.
	if err := os.WriteFile(files[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	e3, d3 := setup(t, engine.Config{StateDir: state, Now: clock})
	d3.SetFaults(mem.Faults{Probe: func(context.Context) error { probes.Add(1); return nil }})
	if err := run(t, e3); err != nil || probes.Load() != 4 {
		t.Errorf("damaged file: %v, %d probes", err, probes.Load())
	}
}

// TestProbeRestsOnFiles: a program that stays learns that an engine's files have
// changed, and a probe under way does not outlive Close.
func TestProbeRestsOnFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "worker")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	now := time.Now()
	d := mem.New(mem.Config{Name: "wazero", Features: func(f *isolation.Features) { f.Tier, f.Depends = isolation.TierWASM, []string{file} }})
	var reg isolation.Registry
	reg.Add(isolation.TierWASM, d)
	e, err := engine.New(engine.Config{Registry: reg, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	probes := 0
	d.SetFaults(mem.Faults{Probe: func(context.Context) error { probes++; return nil }})
	for _, step := range []struct {
		later time.Duration
		write string
		want  int
	}{{0, "", 1}, {time.Hour, "", 1}, {time.Second, "other", 1}, {2 * time.Minute, "", 2}} {
		if now = now.Add(step.later); step.write != "" {
			write(step.write)
		}
		if _, err := e.Explain(context.Background(), request("exit0")); err != nil || probes != step.want {
			t.Errorf("%+v: %v, %d probes", step, err, probes)
		}
	}
	begun := make(chan struct{})
	d.SetFaults(mem.Faults{Probe: func(ctx context.Context) error { close(begun); <-ctx.Done(); return ctx.Err() }})
	write("three")
	now = now.Add(2 * time.Minute)
	told := make(chan error)
	go func() {
		_, err := e.Explain(context.Background(), request("exit0"))
		told <- err
	}()
	<-begun
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := <-told; err == nil {
		t.Error("a probe that was cut short found the engine fit")
	}
}

func TestExplainRunsNothing(t *testing.T) {
	e, d := setup(t, engine.Config{})
	d.SetFaults(mem.Faults{Create: func(context.Context, string, isolation.Spec) error { t.Error("created"); return nil }})
	if dec, err := e.Explain(context.Background(), request("exit0")); err != nil || dec.Got != isolation.TierWASM {
		t.Errorf("%+v %v", dec, err)
	}
}

func TestCloseRefusesRuns(t *testing.T) {
	e, _ := setup(t, engine.Config{})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Run(context.Background(), request("exit0")); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
}

func BenchmarkRun(b *testing.B) {
	e, _ := setup(b, engine.Config{})
	for b.Loop() {
		if res, err := e.Run(context.Background(), request("exit0")); err != nil || !res.Exit.Success() {
			b.Fatal(err)
		}
	}
}
