package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/testprog"
)

var wazeroWorker string

// TestMain builds the worker program of the engine that is always there.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "axo-wasm-test-")
	if err != nil {
		panic(err)
	}
	wazeroWorker = filepath.Join(dir, executable("axo-wasm"))
	if err := testprog.BuildCommands(dir, []string{"axo-wasm"}); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// testWorker returns the worker program of an engine. Without a Rust toolchain
// the test is skipped, or fails where AXO_REQUIRE is set.
func testWorker(t testing.TB, e Engine) string {
	t.Helper()
	if e == Wasmtime {
		return testprog.Wasmtime(t)
	}
	return wazeroWorker
}

// eachEngine runs a test with every engine.
func eachEngine(t *testing.T, test func(*testing.T, Engine)) {
	for _, e := range []Engine{Wazero, Wasmtime} {
		t.Run(string(e), func(t *testing.T) { test(t, e) })
	}
}

func newDriver(t testing.TB, e Engine, change ...func(*Config)) *Driver {
	t.Helper()
	c := Config{Engine: e, Worker: testWorker(t, e), CacheDir: filepath.Join(t.TempDir(), "cache")}
	for _, f := range change {
		f(&c)
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

func wasmSpec(path string) isolation.Spec {
	return isolation.Spec{Requirement: isolation.WasmCompiled, Module: isolation.Module{Path: path}}
}

var ids struct {
	sync.Mutex
	n int
}

func nextID() string {
	ids.Lock()
	defer ids.Unlock()
	ids.n++
	return fmt.Sprintf("t%d", ids.n)
}

type ran struct {
	exit   isolation.Exit
	stdout string
	stderr string
	pid    int
}

// run runs one process in a sandbox of its own.
func run(t testing.TB, d *Driver, spec isolation.Spec, ps isolation.ProcessSpec, stdin io.Reader) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sb, err := d.Create(ctx, nextID(), spec)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	defer func() {
		if err := sb.Delete(context.Background()); err != nil {
			t.Errorf("delete: %v", err)
		}
	}()
	if ps.Args == nil {
		ps.Args = []string{"prog"}
	}
	var out, errOut bytes.Buffer
	p, err := sb.Exec(ctx, ps, isolation.Stdio{Stdin: stdin, Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return ran{exit, out.String(), errOut.String(), p.PID()}
}

func TestReasons(t *testing.T) { eachEngine(t, testReasons) }

func testReasons(t *testing.T, e Engine) {
	d := newDriver(t, e)
	const wall = 200 * time.Millisecond
	short := isolation.Limits{Wall: wall}
	hello := testprog.Wat(t, "tiny")
	if r := run(t, d, wasmSpec(hello), isolation.ProcessSpec{}, nil); !r.exit.Success() || r.stdout != "tiny\n" {
		t.Fatalf("tiny: %v %q", r.exit, r.stdout)
	}
	for _, c := range []struct {
		module string
		limits isolation.Limits
		memory int64
		want   isolation.Reason
		code   int
		hit    isolation.Limit
	}{
		{"exit7", short, 0, isolation.ReasonExited, 7, ""},
		{"nothing", short, 0, isolation.ReasonExited, 0, ""},
		{"loop", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"startloop", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"fib", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"bulkfill", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"bulkline", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"sleep60", short, 0, isolation.ReasonTimeoutWall, -1, isolation.LimitWall},
		{"loop", isolation.Limits{CPU: wall}, 0, isolation.ReasonTimeoutCPU, -1, isolation.LimitCPUTime},
		{"loop", isolation.Limits{Fuel: 1e8}, 0, isolation.ReasonFuelExhausted, -1, isolation.LimitFuel},
		{"fib", isolation.Limits{Fuel: 1e8}, 0, isolation.ReasonFuelExhausted, -1, isolation.LimitFuel},
		{"bulkline", isolation.Limits{Fuel: 1e8}, 0, isolation.ReasonFuelExhausted, -1, isolation.LimitFuel},
		{"flood", isolation.Limits{OutputBytes: 1 << 20}, 0, isolation.ReasonOutputLimit, -1, isolation.LimitOutput},
		{"unreachable", short, 0, isolation.ReasonTrap, -1, ""},
		{"divzero", short, 0, isolation.ReasonTrap, -1, ""},
		{"outofbounds", short, 0, isolation.ReasonTrap, -1, ""},
		{"indirect", short, 0, isolation.ReasonTrap, -1, ""},
		{"deep", isolation.Limits{Wall: 20 * time.Second}, 0, isolation.ReasonTrap, -1, isolation.LimitStack},
		{"memgrow", short, 32 << 20, isolation.ReasonOOM, 3, isolation.LimitMemory},
		{"tablegrow", isolation.Limits{Wall: 10 * time.Second}, 0, isolation.ReasonExited, 3, ""},
	} {
		name := fmt.Sprintf("%s/%+v", c.module, c.limits)
		t.Run(c.module+"/"+string(c.want), func(t *testing.T) {
			t.Parallel()
			spec := wasmSpec(testprog.Wat(t, c.module))
			spec.Resources.MemoryBytes = c.memory
			r := run(t, d, spec, isolation.ProcessSpec{Limits: c.limits}, nil)
			if r.exit.Reason != c.want || r.exit.Code != c.code {
				t.Errorf("%s: %v (code %d), want %s with code %d", name, r.exit, r.exit.Code, c.want, c.code)
			}
			if c.hit != "" && (len(r.exit.LimitsHit) == 0 || r.exit.LimitsHit[0].Limit != c.hit || r.exit.LimitsHit[0].Count < 1) {
				t.Errorf("%s: limits hit %v, want %s", name, r.exit.LimitsHit, c.hit)
			}
			if c.want == isolation.ReasonOutputLimit && r.exit.Stdout.Bytes <= 1<<20 || len(r.stdout) > 1<<20 {
				t.Errorf("%s: %d bytes delivered of %d written", name, len(r.stdout), r.exit.Stdout.Bytes)
			}
		})
	}
	t.Run("readstdin", func(t *testing.T) {
		pr, pw := io.Pipe()
		defer pw.Close()
		r := run(t, d, wasmSpec(testprog.Wat(t, "readstdin")), isolation.ProcessSpec{Limits: short}, pr)
		if r.exit.Reason != isolation.ReasonTimeoutWall {
			t.Errorf("blocked on stdin: %v", r.exit)
		}
	})
}

func TestBadModules(t *testing.T) { eachEngine(t, testBadModules) }

func testBadModules(t *testing.T, e Engine) {
	d := newDriver(t, e)
	for _, c := range []struct {
		module string
		class  error
		says   string
	}{
		{"empty", isolation.ErrInvalidArgument, "empty"},
		{"garbage", isolation.ErrInvalidArgument, ""},
		{"truncated", isolation.ErrInvalidArgument, ""},
		{"version", isolation.ErrInvalidArgument, "version"},
		{"component", map[Engine]error{Wazero: isolation.ErrUnsupported, Wasmtime: isolation.ErrInvalidArgument}[e], "component"}, // an empty one
		{"nostart", isolation.ErrInvalidArgument, "_start"},
		{"badimport", isolation.ErrUnsupported, "import"},
		{"invalid", isolation.ErrInvalidArgument, ""},
	} {
		t.Run(c.module, func(t *testing.T) {
			_, err := d.Create(context.Background(), "bad-"+c.module, wasmSpec(testprog.Wat(t, c.module)))
			if !errors.Is(err, c.class) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %v, want class %v and %q in the text", err, c.class, c.says)
			}
			if isolation.OutcomeOf(err) != isolation.NotStarted {
				t.Errorf("outcome of %v is not %s", err, isolation.NotStarted)
			}
		})
	}
	t.Run("zeros", func(t *testing.T) {
		_, err := d.Create(context.Background(), "zeros", wasmSpec(testprog.Zeros(t, 500<<20)))
		if !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("500 MB of zeros: %v", err)
		}
	})
	for _, bomb := range []string{"bigfunction", "manyfunctions", "nested"} {
		t.Run(bomb, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, err := d.Create(ctx, "bomb", wasmSpec(testprog.Wat(t, bomb)))
			if !errors.Is(err, isolation.ErrInvalidArgument) && !errors.Is(err, isolation.ErrResourceExhausted) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("badsig", func(t *testing.T) {
		sb, err := d.Create(context.Background(), "badsig", wasmSpec(testprog.Wat(t, "badsig")))
		if err == nil {
			_, err = sb.Exec(context.Background(), isolation.ProcessSpec{Args: []string{"x"}}, isolation.Stdio{})
		}
		if err == nil {
			t.Error("an import of the wrong type was accepted")
		}
	})
	for name, c := range map[string]struct {
		module isolation.Module
		class  error
	}{
		"missing":           {isolation.Module{Path: filepath.Join(t.TempDir(), "none.wasm")}, isolation.ErrNotFound},
		"directory":         {isolation.Module{Path: t.TempDir()}, isolation.ErrInvalidArgument},
		"nothing":           {isolation.Module{}, isolation.ErrInvalidArgument},
		"of another digest": {isolation.Module{Path: testprog.Wat(t, "tiny"), Digest: "sha256:" + strings.Repeat("0", 64)}, isolation.ErrFailedPrecondition},
		"of no digest":      {isolation.Module{Path: testprog.Wat(t, "tiny"), Digest: "sha256:0"}, isolation.ErrInvalidArgument},
		"digest":            {isolation.Module{Data: testprog.WatBytes(t, "tiny"), Digest: "sha256:" + strings.Repeat("0", 64)}, isolation.ErrFailedPrecondition},
	} {
		spec := isolation.Spec{Requirement: isolation.WasmCompiled, Module: c.module}
		if _, err := d.Create(context.Background(), "m", spec); !errors.Is(err, c.class) {
			t.Errorf("%s: %v, want %v", name, err, c.class)
		}
	}
	// What was refused left its id free and no worker behind.
	if r := run(t, d, wasmSpec(testprog.Wat(t, "tiny")), isolation.ProcessSpec{}, nil); !r.exit.Success() {
		t.Errorf("after bad modules: %v", r.exit)
	}
}

// A file whose digest is told is that: what the digest names runs, whatever became of the
// file since, and another file is not compiled for it.
func TestModuleOfDigest(t *testing.T) { eachEngine(t, testModuleOfDigest) }

func testModuleOfDigest(t *testing.T, e Engine) {
	d := newDriver(t, e)
	path := filepath.Join(t.TempDir(), "m.wasm")
	write := func(name string) []byte {
		b := testprog.WatBytes(t, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return b
	}
	spec := wasmSpec(path)
	spec.Module.Digest = fmt.Sprintf("sha256:%x", sha256.Sum256(write("exit7")))
	if r := run(t, d, spec, isolation.ProcessSpec{}, nil); r.exit.Code != 7 {
		t.Errorf("the file of its digest: %v", r.exit)
	}
	write("tiny")
	if r := run(t, d, spec, isolation.ProcessSpec{}, nil); r.exit.Code != 7 {
		t.Errorf("the file was changed: %v, want what the digest names", r.exit)
	}
	if _, err := newDriver(t, e).Create(context.Background(), "m", spec); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("another file, and nothing compiled before: %v", err)
	}
}

func TestModuleBelowItsMinimum(t *testing.T) { eachEngine(t, testModuleBelowItsMinimum) }

func testModuleBelowItsMinimum(t *testing.T, e Engine) {
	spec := wasmSpec(testprog.Wat(t, "bigmemory"))
	spec.Resources.MemoryBytes = 64 << 20
	_, err := newDriver(t, e).Create(context.Background(), "big", spec)
	if !errors.Is(err, isolation.ErrInvalidArgument) || !strings.Contains(err.Error(), "declares at least") {
		t.Errorf("module of 2 GiB under a limit of 64 MiB: %v", err)
	}
}

// TestWorkerReuse checks who may use a worker after whom.
func TestWorkerReuse(t *testing.T) { eachEngine(t, testWorkerReuse) }

func testWorkerReuse(t *testing.T, e Engine) {
	d := newDriver(t, e)
	tiny := wasmSpec(testprog.Wat(t, "tiny"))
	a := run(t, d, tiny, isolation.ProcessSpec{}, nil)
	if b := run(t, d, tiny, isolation.ProcessSpec{}, nil); b.pid != a.pid {
		t.Error("same tenant and module: another worker")
	}
	other := tiny
	other.Tenant = "other"
	if b := run(t, d, other, isolation.ProcessSpec{}, nil); b.pid == a.pid {
		t.Error("another tenant got the same worker")
	}
	if b := run(t, d, wasmSpec(testprog.Wat(t, "exit7")), isolation.ProcessSpec{}, nil); b.pid == a.pid {
		t.Error("another module got the same worker")
	}
	fuel := run(t, d, tiny, isolation.ProcessSpec{Limits: isolation.Limits{Fuel: 1e6}}, nil)
	if fuel.pid == a.pid || !fuel.exit.Success() || fuel.exit.Usage.Fuel == 0 {
		t.Errorf("with fuel: %+v", fuel)
	}
	mounted := tiny
	mounted.Mounts = []isolation.Mount{{Source: t.TempDir(), Destination: "/data"}}
	m1 := run(t, d, mounted, isolation.ProcessSpec{}, nil)
	if m2 := run(t, d, mounted, isolation.ProcessSpec{}, nil); m1.pid == m2.pid || m1.pid == a.pid {
		t.Error("a worker with mounts was used twice")
	}
}

// TestInstancesStartBlank runs a Go program whose heap leaves the memory dirty.
func TestInstancesStartBlank(t *testing.T) { eachEngine(t, testInstancesStartBlank) }

func testInstancesStartBlank(t *testing.T, e Engine) {
	d := newDriver(t, e)
	spec := wasmSpec(testprog.Go(t, "tool"))
	in := `{"customer":"a","items":[{"name":"x","price":1.5,"count":2}]}`
	first := run(t, d, spec, isolation.ProcessSpec{}, strings.NewReader(in))
	if !first.exit.Success() || first.stdout == "" {
		t.Fatalf("%v %q %q", first.exit, first.stdout, first.stderr)
	}
	for range 20 {
		if r := run(t, d, spec, isolation.ProcessSpec{}, strings.NewReader(in)); r.stdout != first.stdout || r.pid != first.pid {
			t.Fatalf("run on a used worker: %q, first %q", r.stdout, first.stdout)
		}
	}
}

func TestLostWorkerIsHonestAndReplaced(t *testing.T) {
	eachEngine(t, testLostWorkerIsHonestAndReplaced)
}

func testLostWorkerIsHonestAndReplaced(t *testing.T, e Engine) {
	d := newDriver(t, e)
	ctx := context.Background()
	sb, err := d.Create(ctx, "lost", wasmSpec(testprog.Wat(t, "sleep60")))
	if err != nil {
		t.Fatal(err)
	}
	p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"x"}}, isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	proc, err := os.FindProcess(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(); err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil || exit.Reason != isolation.ReasonSandboxLost || !strings.Contains(exit.Detail, "worker") {
		t.Fatalf("%v %v", exit, err)
	}
	// An idle worker that dies is not handed out.
	tiny := wasmSpec(testprog.Wat(t, "tiny"))
	r := run(t, d, tiny, isolation.ProcessSpec{}, nil)
	if proc, err = os.FindProcess(r.pid); err == nil {
		err = proc.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the dead worker to be forgotten", func() bool {
		d.pool.mu.Lock()
		defer d.pool.mu.Unlock()
		return len(d.pool.all) == 0
	})
	if again := run(t, d, tiny, isolation.ProcessSpec{}, nil); !again.exit.Success() || again.pid == r.pid {
		t.Errorf("after its worker died: %+v", again)
	}
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestSleepersGiveTheirSlotBack fills all slots many times over with sleeping
// modules: a short one still runs.
func TestSleepersGiveTheirSlotBack(t *testing.T) { eachEngine(t, testSleepersGiveTheirSlotBack) }

func testSleepersGiveTheirSlotBack(t *testing.T, e Engine) {
	d := newDriver(t, e, func(c *Config) { c.Runnable = 1 })
	ctx := context.Background()
	sb, err := d.Create(ctx, "sleepers", wasmSpec(testprog.Wat(t, "sleep60")))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"x"}}, isolation.Stdio{}); err != nil {
			t.Fatal(err)
		}
	}
	if r := run(t, d, wasmSpec(testprog.Wat(t, "tiny")), isolation.ProcessSpec{}, nil); !r.exit.Success() {
		t.Error(r.exit)
	}
	if err := sb.Delete(ctx); err != nil {
		t.Error(err)
	}
}

func TestPoolMakesRoom(t *testing.T) { eachEngine(t, testPoolMakesRoom) }

func testPoolMakesRoom(t *testing.T, e Engine) {
	d := newDriver(t, e, func(c *Config) { c.MaxWorkers = 2 })
	spec := wasmSpec(testprog.Wat(t, "tiny"))
	for i := range 6 {
		spec.Tenant = fmt.Sprint(i)
		if r := run(t, d, spec, isolation.ProcessSpec{}, nil); !r.exit.Success() {
			t.Fatal(r.exit)
		}
		d.pool.mu.Lock()
		n := len(d.pool.all)
		d.pool.mu.Unlock()
		if n > 2 {
			t.Fatalf("%d workers, at most 2 are allowed", n)
		}
	}
}

func TestCacheIsUsedAndVerified(t *testing.T) { eachEngine(t, testCacheIsUsedAndVerified) }

func testCacheIsUsedAndVerified(t *testing.T, e Engine) {
	dir := filepath.Join(t.TempDir(), "cache")
	use := func(c *Config) { c.CacheDir = dir }
	spec := wasmSpec(testprog.Go(t, "hello"))
	check := func() {
		t.Helper()
		if r := run(t, newDriver(t, e, use), spec, isolation.ProcessSpec{}, nil); !r.exit.Success() {
			t.Fatal(r.exit, r.stderr)
		}
	}
	check()
	entries, err := filepath.Glob(filepath.Join(dir, strings.Repeat("[0-9a-f]", 64)))
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d artefacts (%v), want 1", len(entries), err)
	}
	native, err := filepath.Glob(filepath.Join(entries[0], map[Engine]string{Wazero: "native/*/*", Wasmtime: "module.cwasm"}[e]))
	if err != nil || len(native) != 1 {
		t.Fatalf("%d native files (%v), want 1", len(native), err)
	}
	made, err := os.Stat(native[0])
	if err != nil {
		t.Fatal(err)
	}
	check()
	if again, err := os.Stat(native[0]); err != nil || !os.SameFile(made, again) {
		t.Errorf("a good artefact was made again (%v)", err)
	}
	// One byte of native code changes: it must not be run.
	b, err := os.ReadFile(native[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(native[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	check()
	if again, err := os.Stat(native[0]); err != nil || os.SameFile(made, again) {
		t.Errorf("a damaged artefact is still there (%v)", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Engine: e, Worker: testWorker(t, e), CacheDir: dir}); err == nil {
		t.Error("a cache directory that others can read was accepted")
	}
}

func TestCreateSharesOneCompilation(t *testing.T) { eachEngine(t, testCreateSharesOneCompilation) }

func testCreateSharesOneCompilation(t *testing.T, e Engine) {
	d := newDriver(t, e)
	spec := wasmSpec(testprog.Go(t, "hello"))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := d.Create(context.Background(), fmt.Sprintf("c%d", i), spec); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, _ := filepath.Glob(filepath.Join(d.cache.dir, "*"))
	if len(entries) != 2 { // the artefact and the secret
		t.Errorf("cache holds %v", entries)
	}
}

func TestProbe(t *testing.T) { eachEngine(t, testProbe) }

func testProbe(t *testing.T, e Engine) {
	f, err := newDriver(t, e).Probe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if f.Tier != isolation.TierWASM || f.Engine != string(e) || !f.CanRun(isolation.WasmCompiled) || f.CanRun(isolation.Python) {
		t.Errorf("%+v", f)
	}
	for _, l := range []isolation.Limit{isolation.LimitWall, isolation.LimitMemory, isolation.LimitFuel} {
		if !f.Enforcement(l).Enforced {
			t.Errorf("%s is not enforced: %+v", l, f.Enforcement(l))
		}
	}
	d, err := New(Config{Engine: e, Worker: "/nonexistent/axo-wasm"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if f, err := d.Probe(context.Background()); !errors.Is(err, isolation.ErrInvalidArgument) || f.Tier != isolation.TierWASM {
		t.Errorf("worker that is not there: %v %v", f.Tier, err)
	}
}
