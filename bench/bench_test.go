// Package bench measures what docs/CLAIMS.md claims: each figure beside its
// floor or peer, in one run. It asserts nothing about time.
package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/testprog"
)

var programs struct {
	once        sync.Once
	axo, worker string
	err         error
}

// build makes axo and axo-wasm beside each other.
func build(b *testing.B) (axo, worker string) {
	b.Helper()
	p := &programs
	p.once.Do(func() {
		var dir string
		if dir, p.err = os.MkdirTemp("", "axo-bench-"); p.err != nil {
			return
		}
		p.axo, p.worker = filepath.Join(dir, "axo"), filepath.Join(dir, "axo-wasm")
		p.err = testprog.BuildCommands(dir, []string{"axo", "axo-wasm"})
	})
	if p.err != nil {
		b.Fatal(p.err)
	}
	return p.axo, p.worker
}

func TestMain(m *testing.M) {
	code := m.Run()
	if programs.axo != "" {
		os.RemoveAll(filepath.Dir(programs.axo))
	}
	os.Exit(code)
}

func newEngine(b *testing.B) *engine.Engine {
	b.Helper()
	_, worker := build(b)
	state := filepath.Join(b.TempDir(), "state")
	reg, err := all.Registry(all.Config{StateDir: state, Worker: worker})
	if err != nil {
		b.Fatal(err)
	}
	e, err := engine.New(engine.Config{Registry: reg, StateDir: state, ProbeTimeout: time.Minute})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	return e
}

func request(path string, limits isolation.Limits, args ...string) engine.Request {
	return engine.Request{
		Spec: isolation.Spec{
			Requirement: isolation.WasmCompiled, Module: isolation.Module{Path: path},
			Resources: isolation.Resources{MemoryBytes: 64 << 20},
		},
		Process: isolation.ProcessSpec{Args: append([]string{"prog"}, args...), Limits: limits},
		Capture: engine.DefaultCapture,
	}
}

var deadline = isolation.Limits{Wall: time.Minute}

func run(b *testing.B, e *engine.Engine, r engine.Request) *engine.Result {
	b.Helper()
	res, err := e.Run(context.Background(), r)
	if err != nil {
		b.Fatal(err)
	}
	return res
}

func succeed(b *testing.B, e *engine.Engine, r engine.Request) {
	b.Helper()
	if res := run(b, e, r); !res.Exit.Success() {
		b.Fatalf("%v %s", res.Exit, res.Stderr)
	}
}

// inProcess is the floor: the engine in this process, with nothing around it.
func inProcess(b *testing.B, path string, args ...string) {
	ctx := context.Background()
	wasm, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	r := wazero.NewRuntime(ctx)
	defer r.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	m, err := r.CompileModule(ctx, wasm)
	if err != nil {
		b.Fatal(err)
	}
	var out bytes.Buffer
	config := wazero.NewModuleConfig().WithName("").WithStdout(&out).WithSysWalltime().WithSysNanotime().WithArgs(append([]string{"prog"}, args...)...)
	timed(b, func() {
		out.Reset()
		inst, err := r.InstantiateModule(ctx, m, config)
		if err != nil {
			b.Fatal(err)
		}
		inst.Close(ctx)
	})
}

func BenchmarkTiny(b *testing.B) {
	path := testprog.Wat(b, "tiny")
	b.Run("in-process", func(b *testing.B) { inProcess(b, path) })
	b.Run("driver", func(b *testing.B) {
		_, worker := build(b)
		reg, err := all.Registry(all.Config{StateDir: filepath.Join(b.TempDir(), "state"), Worker: worker})
		if err != nil {
			b.Fatal(err)
		}
		defer func() {
			for _, r := range reg.All() {
				r.Driver.Close()
			}
		}()
		ctx := context.Background()
		spec := request(path, deadline).Spec
		sb, err := reg.Of(isolation.TierWASM)[0].Driver.Create(ctx, "bench", spec)
		if err != nil {
			b.Fatal(err)
		}
		timed(b, func() {
			var out bytes.Buffer
			p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"prog"}, Limits: deadline}, isolation.Stdio{Stdout: &out})
			if err != nil {
				b.Fatal(err)
			}
			if exit, err := p.Wait(ctx); err != nil || !exit.Success() {
				b.Fatal(exit, err)
			}
		})
	})
	b.Run("engine", func(b *testing.B) {
		e := newEngine(b)
		timed(b, func() { succeed(b, e, request(path, deadline)) })
	})
}

func BenchmarkGoModule(b *testing.B) {
	for _, name := range []string{"hello"} {
		path := testprog.Go(b, name)
		b.Run(name+"/in-process", func(b *testing.B) { inProcess(b, path) })
		b.Run(name+"/engine", func(b *testing.B) {
			e := newEngine(b)
			timed(b, func() { succeed(b, e, request(path, deadline)) })
		})
	}
}

// BenchmarkCPU compares C compiled to WASM with the same C compiled by gcc -O2.
func BenchmarkCPU(b *testing.B) {
	for _, c := range []struct{ name, arg string }{{"nbody", "2000000"}} {
		native := testprog.CNative(b, c.name)
		b.Run(c.name+"/native", func(b *testing.B) {
			timed(b, func() {
				if err := exec.Command(native, c.arg).Run(); err != nil {
					b.Fatal(err)
				}
			})
		})
		path := testprog.C(b, c.name)
		b.Run(c.name+"/wasm", func(b *testing.B) {
			e := newEngine(b)
			timed(b, func() { succeed(b, e, request(path, deadline, c.arg)) })
		})
		b.Run(c.name+"/wasm-fuel", func(b *testing.B) {
			e := newEngine(b)
			timed(b, func() { succeed(b, e, request(path, isolation.Limits{Wall: time.Minute, Fuel: 1 << 60}, c.arg)) })
		})
	}
	b.Run("sha256-16MB/native", func(b *testing.B) {
		native, in := testprog.CNative(b, "sha256"), make([]byte, 16<<20)
		timed(b, func() {
			cmd := exec.Command(native)
			cmd.Stdin = bytes.NewReader(in)
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("sha256-16MB/wasm", func(b *testing.B) {
		e, in := newEngine(b), make([]byte, 16<<20)
		path := testprog.C(b, "sha256")
		timed(b, func() {
			r := request(path, deadline)
			r.Stdin = bytes.NewReader(in)
			succeed(b, e, r)
		})
	})
}

// BenchmarkFirstRun is a new process that finds the module in the disk cache,
// and one that only prints its version.
func BenchmarkFirstRun(b *testing.B) {
	axo, _ := build(b)
	state := filepath.Join(b.TempDir(), "state")
	for name, args := range map[string][]string{
		"version": {"version"}, "go-hello": {"run", "--state-dir", state, "--timeout", "1m", testprog.Go(b, "hello")},
	} {
		b.Run(name, func(b *testing.B) {
			once := func() {
				if out, err := exec.Command(axo, args...).CombinedOutput(); err != nil {
					b.Fatalf("%v %s", err, out)
				}
			}
			timed(b, once)
		})
	}
}

// BenchmarkToolFirstCall calls a tool of a module that was added before, in a new process
// each time; "version" is the start of axo alone, and "true" a program in a container.
func BenchmarkToolFirstCall(b *testing.B) {
	axo, _ := build(b)
	dir := b.TempDir()
	module, err := os.ReadFile(testprog.Go(b, "cat"))
	if err != nil {
		b.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"cat.wasm":  module,
		"tool.toml": []byte("name = 'cat'\nversion = '1'\ndescription = 'd'\nlimits.timeout = '1m'\n[entrypoint]\nmodule = 'cat.wasm'\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	b.Setenv("AXO_STATE_DIR", filepath.Join(b.TempDir(), "state"))
	b.Setenv("AXO_GUEST_PATH", testprog.Guest(b))
	once := func(b *testing.B, args ...string) {
		if out, err := exec.Command(axo, args...).CombinedOutput(); err != nil {
			b.Fatalf("%v %s", err, out)
		}
	}
	once(b, "tool", "add", dir)
	for name, args := range map[string][]string{
		"version": {"version"}, "call": {"tool", "call", "cat", `{"a":1}`}, "true": {"run", "--", "true"},
	} {
		b.Run(name, func(b *testing.B) { timed(b, func() { once(b, args...) }) })
	}
}

// BenchmarkDeadlineOvershoot reports how late runs end that never end by
// themselves.
func BenchmarkDeadlineOvershoot(b *testing.B) {
	const wall = 50 * time.Millisecond
	for _, name := range []string{"loop", "sleep60", "fib", "bulkfill"} {
		b.Run(name, func(b *testing.B) {
			e := newEngine(b)
			path := testprog.Wat(b, name)
			var late []time.Duration
			for b.Loop() {
				res := run(b, e, request(path, isolation.Limits{Wall: wall}))
				if res.Exit.Reason != isolation.ReasonTimeoutWall {
					b.Fatal(res.Exit)
				}
				late = append(late, res.Exit.Usage.Wall-wall)
			}
			report(b, late)
		})
	}
}

// timed runs f again and again, after once to warm up, and reports its median: a
// mean tells of what else the machine did.
func timed(b *testing.B, f func()) {
	f()
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		f()
		all = append(all, time.Since(began))
	}
	report(b, all)
}

func report(b *testing.B, all []time.Duration) {
	slices.Sort(all)
	at := func(p int) float64 { return float64(all[min(len(all)-1, len(all)*p/100)].Microseconds()) }
	b.ReportMetric(at(50), "p50-us")
	b.ReportMetric(at(99), "p99-us")
}

// BenchmarkConcurrent has 100 callers at once.
func BenchmarkConcurrent(b *testing.B) {
	e := newEngine(b)
	path := testprog.Wat(b, "tiny")
	succeed(b, e, request(path, deadline))
	b.Run("100-callers", func(b *testing.B) {
		var mu sync.Mutex
		var all []time.Duration
		work := make(chan struct{})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for range work {
					began := time.Now()
					res, err := e.Run(context.Background(), request(path, deadline))
					took := time.Since(began)
					mu.Lock()
					all = append(all, took)
					mu.Unlock()
					if err != nil || !res.Exit.Success() {
						b.Error(err)
					}
				}
			})
		}
		for b.Loop() {
			work <- struct{}{}
		}
		close(work)
		wg.Wait()
		report(b, all)
	})
	b.Run("50-modules-4-tenants", func(b *testing.B) {
		dir := b.TempDir()
		tiny := testprog.WatBytes(b, "tiny")
		var paths []string
		for i := range 50 {
			// A custom section makes another module of it.
			name := filepath.Join(dir, fmt.Sprintf("m%d.wasm", i))
			if err := os.WriteFile(name, append(bytes.Clone(tiny), 0, 2, 1, byte('a'+i)), 0o600); err != nil {
				b.Fatal(err)
			}
			paths = append(paths, name)
		}
		n := 0
		timed(b, func() {
			r := request(paths[n%50], deadline)
			r.Spec.Tenant = fmt.Sprint(n / 50 % 4)
			succeed(b, e, r)
			n++
		})
	})
	b.Run("beside-20-sleepers", func(b *testing.B) {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		sleeper := testprog.Wat(b, "sleep60")
		for range 20 {
			wg.Go(func() { _, _ = e.Run(ctx, request(sleeper, deadline)) })
		}
		time.Sleep(500 * time.Millisecond)
		timed(b, func() { succeed(b, e, request(path, deadline)) })
		cancel()
		wg.Wait()
	})
}

// BenchmarkIdleWorker reports the private memory of workers that wait for the
// next run (proc_pid_smaps(5)): what a kept worker costs.
func BenchmarkIdleWorker(b *testing.B) {
	for name, path := range map[string]string{"tiny": testprog.Wat(b, "tiny"), "go-hello": testprog.Go(b, "hello")} {
		b.Run(name, func(b *testing.B) {
			e := newEngine(b)
			timed(b, func() { succeed(b, e, request(path, deadline)) })
			reportIdle(b)
		})
	}
}

// reportIdle reports the private memory of the workers that are there, once they
// have nothing to do.
func reportIdle(b *testing.B) {
	b.Helper()
	time.Sleep(200 * time.Millisecond) // it gives memory back when it has nothing to do
	total, n := 0, 0
	for _, pid := range workers(b) {
		f, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
		if err != nil {
			continue // a spare that was not needed
		}
		n++
		for line := range strings.Lines(string(f)) {
			var kb int
			if strings.HasPrefix(line, "Private_") {
				if _, err := fmt.Sscanf(line[strings.IndexByte(line, ':')+1:], "%d", &kb); err != nil {
					b.Fatal(err)
				}
				total += kb
			}
		}
	}
	if n == 0 {
		b.Fatal("no worker")
	}
	b.ReportMetric(float64(total)/1024/float64(n), "private-MiB/worker")
	b.ReportMetric(float64(n), "workers")
}

// workers lists the children of this process that run axo-wasm.
func workers(b *testing.B) (pids []string) {
	b.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		b.Fatal(err)
	}
	for _, l := range lists {
		list, _ := os.ReadFile(l)
		pids = append(pids, strings.Fields(string(list))...)
	}
	return pids
}
