package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm"
	"github.com/axocoatl/isolation/internal/testprog"
)

// interpreted makes a driver of an engine that has the interpreters.
func interpreted(b *testing.B, e wasm.Engine) isolation.Driver {
	b.Helper()
	_, worker := build(b)
	if e == wasm.Wasmtime {
		worker = testprog.Wasmtime(b)
	}
	c := wasm.Config{Engine: e, Worker: worker, CacheDir: filepath.Join(b.TempDir(), "cache"), NoPark: true}
	for name, path := range map[string]string{"python": testprog.Python(b), "js": testprog.QuickJS(b)} {
		module, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		c.Languages = append(c.Languages, wasm.Language{Name: name, Path: path, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(module))})
	}
	d, err := wasm.New(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	return d
}

// sandboxOf makes a sandbox for source, which compiles the interpreter.
func sandboxOf(b *testing.B, d isolation.Driver, r isolation.Requirement, language string) isolation.Sandbox {
	b.Helper()
	sb, err := d.Create(context.Background(), "bench-"+language, isolation.Spec{Requirement: r, Language: language, Resources: isolation.Resources{MemoryBytes: 64 << 20}})
	if err != nil {
		b.Fatal(err)
	}
	return sb
}

// source runs a program and returns the CPU time that it was counted.
func source(b *testing.B, sb isolation.Sandbox, env []string, args ...string) time.Duration {
	b.Helper()
	var out bytes.Buffer
	p, err := sb.Exec(context.Background(), isolation.ProcessSpec{Args: args, Env: env, Limits: deadline}, isolation.Stdio{Stdout: &out})
	if err != nil {
		b.Fatal(err)
	}
	e, err := p.Wait(context.Background())
	if err != nil || !e.Success() || out.String() != "42\n" {
		b.Fatal(e, err, out.String())
	}
	return e.Usage.CPU
}

// cpuTimes collects CPU times by name: a busy machine changes them little.
type cpuTimes map[string][]time.Duration

func (c cpuTimes) add(name string, d time.Duration) { c[name] = append(c[name], d) }

func (c cpuTimes) report(b *testing.B) {
	for name, all := range c {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-cpu-us")
	}
}

// fresh is environment that keeps a run out of an interpreter that was started
// ahead, and has no other effect on a program of one line.
var fresh = []string{"PYTHONNOUSERSITE=1"}

// BenchmarkPythonWASM: a Python one-liner in an interpreter that is started for
// it in a worker that is there (fresh), and in one that waited (parked), beside
// python3 on the host.
func BenchmarkPythonWASM(b *testing.B) {
	const code = "print(6*7)"
	all := []contender{plain("host", func() {
		if err := exec.Command("/usr/bin/python3", "-c", code).Run(); err != nil {
			b.Fatal(err)
		}
	})}
	cpu := cpuTimes{}
	for _, e := range []wasm.Engine{wasm.Wasmtime, wasm.Wazero} {
		d := interpreted(b, e)
		sb := sandboxOf(b, d, isolation.Python, "")
		source(b, sb, fresh, "python3", "-c", code)
		all = append(all,
			plain(string(e)+"-fresh", func() { cpu.add(string(e)+"-fresh", source(b, sb, fresh, "python3", "-c", code)) }),
			contender{string(e) + "-parked", func(b *testing.B) (func(), func()) {
				p, ok := isolation.As[isolation.Preparer](sb)
				if !ok {
					b.Fatal("no ability prepare")
				}
				if err := p.Prepare(context.Background(), "python"); err != nil {
					b.Fatal(err)
				}
				// What the start of the run before left to do is not the next one's.
				return func() { cpu.add(string(e)+"-parked", source(b, sb, nil, "python3", "-c", code)) }, func() { time.Sleep(5 * time.Millisecond) }
			}},
		)
	}
	compare(b, 0, all...)
	cpu.report(b)
}

// BenchmarkJavaScriptWASM: a JavaScript one-liner in a worker that is there.
func BenchmarkJavaScriptWASM(b *testing.B) {
	var all []contender
	cpu := cpuTimes{}
	for _, e := range []wasm.Engine{wasm.Wasmtime, wasm.Wazero} {
		sb := sandboxOf(b, interpreted(b, e), isolation.Arbitrary, "js")
		run := func() { cpu.add(string(e), source(b, sb, nil, "node", "-e", "console.log(6*7)")) }
		run()
		all = append(all, plain(string(e), run))
	}
	compare(b, 0, all...)
	cpu.report(b)
}

// BenchmarkParkedPython: the private memory of a worker in which Python waits.
func BenchmarkParkedPython(b *testing.B) {
	for _, e := range []wasm.Engine{wasm.Wasmtime, wasm.Wazero} {
		b.Run(string(e), func(b *testing.B) {
			sb := sandboxOf(b, interpreted(b, e), isolation.Python, "")
			p, ok := isolation.As[isolation.Preparer](sb)
			if !ok {
				b.Fatal("no ability prepare")
			}
			for b.Loop() {
				if err := p.Prepare(context.Background(), "python"); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(privateOf(b, os.Getpid()))/(1<<20), "private-MiB")
		})
	}
}
