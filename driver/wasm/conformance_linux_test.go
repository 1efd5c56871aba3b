package wasm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/testprog"
)

// conformance tells the suite how to run its programs as WASI modules.
func conformance(t testing.TB, e Engine) drivertest.Config {
	prog := testprog.Go(t, "conform")
	data := t.TempDir()
	cacheDir := filepath.Join(t.TempDir(), "cache")
	return drivertest.Config{
		New: func(t testing.TB) isolation.Driver {
			d, err := New(Config{Engine: e, Worker: testWorker(t, e), CacheDir: cacheDir})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			spec := wasmSpec(prog)
			switch p {
			case drivertest.Cwd, drivertest.User, drivertest.Hostname, drivertest.Stubborn, drivertest.Forks, drivertest.Survivors:
				return isolation.Spec{}, isolation.ProcessSpec{}, false // a module has none of these
			case drivertest.Crash:
				spec = wasmSpec(testprog.Wat(t, "unreachable")) // a Go program's panic is an exit status
			case drivertest.Fill, drivertest.Files:
				spec.Mounts = []isolation.Mount{{Source: data, Destination: "/data"}}
			}
			return spec, isolation.ProcessSpec{Args: append([]string{"conform", string(p)}, args...)}, true
		},
		Lose: func(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
			proc, err := os.FindProcess(p.PID())
			if err == nil {
				err = proc.Kill()
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		Leftovers: func(t testing.TB) []string {
			base := cgroup.Find(cgroup.Memory).Base(cgroup.Memory)
			if base == "" {
				return nil
			}
			left, err := filepath.Glob(filepath.Join(base, "axo-wasm-*"))
			if err != nil {
				t.Fatal(err)
			}
			for i := range left {
				left[i] = "control group " + strings.TrimPrefix(left[i], base)
			}
			return left
		},
	}
}

func TestConformance(t *testing.T) {
	eachEngine(t, func(t *testing.T, e Engine) { drivertest.Run(t, conformance(t, e)) })
}

func BenchmarkConformance(b *testing.B) {
	for _, e := range []Engine{Wazero, Wasmtime} {
		b.Run(string(e), func(b *testing.B) { drivertest.Benchmark(b, conformance(b, e)) })
	}
}
