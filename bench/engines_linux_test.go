package bench

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm"
	"github.com/axocoatl/isolation/internal/testprog"
)

// wasmDriver makes the WASM tier's driver with one engine.
func wasmDriver(b *testing.B, e wasm.Engine) *wasm.Driver {
	b.Helper()
	var worker string
	if e == wasm.Wasmtime {
		worker = testprog.Wasmtime(b)
	} else {
		_, worker = build(b)
	}
	d, err := wasm.New(wasm.Config{Engine: e, Worker: worker, CacheDir: filepath.Join(b.TempDir(), "cache")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	})
	return d
}

// created numbers the sandboxes.
var created int

// warm returns a function that runs a module once on a worker that has it.
func warm(b *testing.B, d *wasm.Driver, path string, limits isolation.Limits, stdin []byte, args ...string) func() {
	b.Helper()
	ctx := context.Background()
	created++
	sb, err := d.Create(ctx, "bench-"+strconv.Itoa(created), request(path, limits).Spec)
	if err != nil {
		b.Fatal(err)
	}
	once := func() {
		var out bytes.Buffer
		p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: append([]string{"prog"}, args...), Limits: limits}, isolation.Stdio{Stdin: bytes.NewReader(stdin), Stdout: &out})
		if err != nil {
			b.Fatal(err)
		}
		if exit, err := p.Wait(ctx); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
	once()
	return once
}

var toolInput = []byte(`{"customer":"Acme","items":[` + strings.Repeat(`{"name":"bolt","price":0.25,"count":400},`, 18) + `{"name":"gear","price":12.5,"count":3}]}`)

// BenchmarkEngines has both engines run the same warm modules in turn, at the
// driver's level, with a deadline and a memory limit.
func BenchmarkEngines(b *testing.B) {
	zero, fast := wasmDriver(b, wasm.Wazero), wasmDriver(b, wasm.Wasmtime)
	for _, m := range []struct {
		name, path string
		stdin      []byte
	}{
		{"tiny", testprog.Wat(b, "tiny"), nil},
		{"c-hello", testprog.C(b, "hello"), nil},
		{"go-hello", testprog.Go(b, "hello"), nil},
		{"go-json", testprog.Go(b, "tool"), toolInput},
	} {
		b.Run(m.name, func(b *testing.B) {
			compare(b, 0,
				plain("wazero", warm(b, zero, m.path, deadline, m.stdin)),
				plain("wasmtime", warm(b, fast, m.path, deadline, m.stdin)))
		})
	}
	b.Run("component-hello", func(b *testing.B) {
		path := testprog.C(b, "hello")
		compare(b, 0,
			plain("module", warm(b, fast, path, deadline, nil)),
			plain("component", warm(b, fast, testprog.Component(b, path), deadline, nil)))
	})
}

// BenchmarkEnginesCPU has them compute, beside gcc -O2: with a deadline that is
// kept by a kill, and with fuel.
func BenchmarkEnginesCPU(b *testing.B) {
	zero, fast := wasmDriver(b, wasm.Wazero), wasmDriver(b, wasm.Wasmtime)
	fuel := isolation.Limits{Wall: deadline.Wall, Fuel: 1 << 60}
	for _, c := range []struct{ name, arg string }{{"nbody", "1000000"}, {"sha256", "16"}} {
		native, path := testprog.CNative(b, c.name), testprog.C(b, c.name)
		b.Run(c.name, func(b *testing.B) {
			compare(b, 0,
				plain("native", func() {
					if err := exec.Command(native, c.arg).Run(); err != nil {
						b.Fatal(err)
					}
				}),
				plain("wazero", warm(b, zero, path, deadline, nil, c.arg)),
				plain("wasmtime", warm(b, fast, path, deadline, nil, c.arg)),
				plain("wasmtime-fuel", warm(b, fast, path, fuel, nil, c.arg)))
		})
	}
}

// BenchmarkEnginesChecks reports the CPU time of the same programs on wasmtime alone,
// with fuel, and with epochs, which axo does not use, against gcc -O2.
func BenchmarkEnginesChecks(b *testing.B) {
	for _, c := range []struct{ name, arg string }{{"nbody", "1000000"}, {"sha256", "16"}} {
		b.Run(c.name, func(b *testing.B) {
			var native []time.Duration
			for b.Loop() {
				cmd := exec.Command(testprog.CNative(b, c.name), c.arg)
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
				native = append(native, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
			}
			slices.Sort(native)
			floor := float64(native[len(native)/2])
			b.ReportMetric(floor/1e3, "native-us")
			b.ReportMetric(0, "ns/op") // of starting programs
			for name, ns := range testprog.WasmtimeChecks(b, testprog.C(b, c.name), len(native), c.arg) {
				b.ReportMetric(ns/1e3, name+"-us")
				b.ReportMetric(ns/floor, name+"-x")
			}
		})
	}
}

// BenchmarkEnginesFirstRun is a new process that finds the module in the disk
// cache, with each engine, beside one that only prints its version.
func BenchmarkEnginesFirstRun(b *testing.B) {
	dir := b.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo", "axo-wasm"}); err != nil {
		b.Fatal(err)
	}
	// Where an installation has it.
	worker, err := os.ReadFile(testprog.Wasmtime(b))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "axo-wasmtime"), worker, 0o755)
	}
	if err != nil {
		b.Fatal(err)
	}
	axo, state := filepath.Join(dir, "axo"), filepath.Join(b.TempDir(), "state")
	path := testprog.Go(b, "hello")
	command := func(args ...string) func() {
		once := func() {
			if out, err := exec.Command(axo, args...).CombinedOutput(); err != nil {
				b.Fatalf("%v %s", err, out)
			}
		}
		once() // fills the cache
		return once
	}
	on := func(engine string) func() {
		return command("run", "--engine", engine, "--state-dir", state, "--timeout", "1m", "--memory", "64M", path)
	}
	compare(b, 0, plain("version", command("version")), plain("wazero", on("wazero")), plain("wasmtime", on("wasmtime")))
}

// BenchmarkEnginesIdle reports the private memory of a worker that waits for the
// next run, with each engine.
func BenchmarkEnginesIdle(b *testing.B) {
	for _, e := range []wasm.Engine{wasm.Wazero, wasm.Wasmtime} {
		for name, path := range map[string]string{"tiny": testprog.Wat(b, "tiny"), "go-hello": testprog.Go(b, "hello")} {
			b.Run(string(e)+"/"+name, func(b *testing.B) {
				once := warm(b, wasmDriver(b, e), path, deadline, nil)
				for b.Loop() {
					once()
				}
				reportIdle(b)
			})
		}
	}
}
