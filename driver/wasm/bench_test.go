package wasm

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/testprog"
)

var testWorker string

// TestMain builds the worker program that the tests run modules in.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "axo-wasm-test-")
	if err != nil {
		panic(err)
	}
	testWorker = filepath.Join(dir, workerName())
	cmd := exec.Command("go", "build", "-o", testWorker, "github.com/axocoatl/isolation/cmd/axo-wasm")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(string(out))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func newDriver(t testing.TB) *Driver {
	t.Helper()
	d, err := New(Config{Worker: testWorker, CacheDir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func benchWarm(b *testing.B, path string, stdin []byte) {
	d := newDriver(b)
	ctx := context.Background()
	sb, err := d.Create(ctx, "bench", isolation.Spec{Requirement: isolation.WasmCompiled, Module: isolation.Module{Path: path}})
	if err != nil {
		b.Fatal(err)
	}
	var out bytes.Buffer
	for b.Loop() {
		out.Reset()
		p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"x"}, Limits: isolation.Limits{Wall: 10e9}}, isolation.Stdio{Stdin: bytes.NewReader(stdin), Stdout: &out})
		if err != nil {
			b.Fatal(err)
		}
		if e, err := p.Wait(ctx); err != nil || !e.Success() {
			b.Fatal(e, err)
		}
	}
}

func BenchmarkWarmTiny(b *testing.B) { benchWarm(b, testprog.Wat(b, "tiny"), nil) }

func BenchmarkWarmGoHello(b *testing.B) { benchWarm(b, testprog.Go(b, "hello"), nil) }
