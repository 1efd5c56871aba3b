package rewrite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/axocoatl/isolation/driver/wasm/internal/rewrite"
	"github.com/axocoatl/isolation/internal/testprog"
)

// outcome is what can be seen of a run.
type outcome struct {
	stdout string
	end    string
	fuel   int64 // left
}

// run runs a module on wazero, with the image in place and fuel set.
func run(t testing.TB, res rewrite.Result, fuel int64, stdin string) outcome {
	t.Helper()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().
		WithCoreFeatures(api.CoreFeaturesV2|experimental.CoreFeaturesTailCall))
	defer r.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	var out bytes.Buffer
	m, err := r.InstantiateWithConfig(ctx, res.Module, wazero.NewModuleConfig().WithStartFunctions().
		WithStdin(strings.NewReader(stdin)).WithStdout(&out).WithStderr(&out).WithArgs("prog").WithSysWalltime().WithSysNanotime())
	if err != nil {
		t.Fatalf("instantiate: %v", err)
	}
	if res.Image != nil && !m.Memory().Write(res.ImageBase, res.Image) {
		t.Fatal("image does not fit the memory")
	}
	var left api.MutableGlobal
	if g := m.ExportedGlobal(rewrite.FuelGlobal); g != nil {
		left = g.(api.MutableGlobal)
		left.Set(uint64(fuel))
	}
	_, err = m.ExportedFunction("_start").Call(ctx)
	o := outcome{stdout: out.String()}
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit):
		o.end = fmt.Sprint("exit ", exit.ExitCode())
	case err != nil:
		o.end, _, _ = strings.Cut(err.Error(), "\n")
	default:
		o.end = "exit 0"
	}
	if left != nil {
		o.fuel = int64(left.Get())
	}
	return o
}

var variants = map[string]rewrite.Options{
	"plain": {}, "fuel": {Fuel: true}, "image": {Image: true}, "fuel and image": {Fuel: true, Image: true},
}

// TestSameBehaviour runs programs as they are and as they are rewritten.
func TestSameBehaviour(t *testing.T) {
	programs := map[string]string{
		"go hello": testprog.Go(t, "hello"), "go tool": testprog.Go(t, "tool"), "c sha256": testprog.C(t, "sha256"),
		"tiny": testprog.Wat(t, "tiny"), "exit7": testprog.Wat(t, "exit7"), "cat": testprog.Wat(t, "cat"),
		"unreachable": testprog.Wat(t, "unreachable"), "indirect": testprog.Wat(t, "indirect"), "outofbounds": testprog.Wat(t, "outofbounds"),
	}
	const in = `{"customer":"a","items":[{"name":"x","price":1.5,"count":2}]}`
	for name, path := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wasm, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := run(t, rewrite.Result{Module: wasm}, 0, in)
			for what, o := range variants {
				res, err := rewrite.Rewrite(wasm, o)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				got := run(t, res, math.MaxInt64, in)
				if got.stdout != want.stdout || got.end != want.end {
					t.Errorf("%s: %q %s, unchanged it is %q %s", what, got.stdout, got.end, want.stdout, want.end)
				}
			}
		})
	}
}

func TestFuelStopsWhatWouldNotEnd(t *testing.T) {
	for _, name := range []string{"loop", "fib", "bulkline", "bulkfill"} {
		res, err := rewrite.Rewrite(testprog.WatBytes(t, name), rewrite.Options{Fuel: true})
		if err != nil {
			t.Fatal(err)
		}
		if o := run(t, res, 10_000_000, ""); o.fuel != rewrite.FuelExhausted || !strings.Contains(o.end, "unreachable") {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

func TestFuelIsDeterministicAndTellsATrapApart(t *testing.T) {
	wasm, err := os.ReadFile(testprog.C(t, "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := rewrite.Rewrite(wasm, rewrite.Options{Fuel: true})
	if err != nil {
		t.Fatal(err)
	}
	a, b := run(t, res, math.MaxInt64, "abc"), run(t, res, math.MaxInt64, "abc")
	if a != b || a.fuel == math.MaxInt64 {
		t.Errorf("two runs: %+v and %+v", a, b)
	}
	trap, err := rewrite.Rewrite(testprog.WatBytes(t, "unreachable"), rewrite.Options{Fuel: true})
	if err != nil {
		t.Fatal(err)
	}
	if o := run(t, trap, 1000, ""); o.fuel == rewrite.FuelExhausted || o.fuel == 1000 {
		t.Errorf("a trap of its own: %+v", o)
	}
}

func TestSegmentsAreMerged(t *testing.T) {
	wasm, err := os.ReadFile(testprog.Go(t, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := rewrite.Rewrite(wasm, rewrite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := rewrite.Rewrite(res.Module, rewrite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Info.DataSegments < 10_000 || again.Info.DataSegments > res.Info.DataSegments/10 {
		t.Errorf("%d segments became %d", res.Info.DataSegments, again.Info.DataSegments)
	}
	image, err := rewrite.Rewrite(wasm, rewrite.Options{Image: true})
	if err != nil || len(image.Image) == 0 {
		t.Fatalf("image of %d bytes, %v", len(image.Image), err)
	}
}

func TestTablesAreCapped(t *testing.T) {
	res, err := rewrite.Rewrite(testprog.WatBytes(t, "tablegrow"), rewrite.Options{MaxTable: 1 << 17})
	if err != nil {
		t.Fatal(err)
	}
	if o := run(t, res, 0, ""); o.end != "exit 3" {
		t.Errorf("growing a capped table: %+v", o)
	}
}

func TestRefused(t *testing.T) {
	for name, kind := range map[string]rewrite.Kind{
		"empty": rewrite.Empty, "garbage": rewrite.NotWasm, "component": rewrite.Component,
		"truncated": rewrite.Truncated, "version": rewrite.Malformed,
		"bigfunction": rewrite.TooLarge, "manyfunctions": rewrite.TooLarge, "nested": rewrite.TooLarge,
	} {
		_, err := rewrite.Rewrite(testprog.WatBytes(t, name), rewrite.Options{})
		if !rewrite.IsKind(err, kind) {
			t.Errorf("%s: %v, want kind %d", name, err, kind)
		}
	}
	// A module must not reach the fuel by the index that it will get.
	reach := []byte("\x00asm\x01\x00\x00\x00" +
		"\x01\x04\x01\x60\x00\x00" + "\x03\x02\x01\x00" + // one function of no type
		"\x0a\x08\x01\x06\x00\x42\x00\x24\x00\x0b") // global.set 0, there is none
	if _, err := rewrite.Rewrite(reach, rewrite.Options{Fuel: true}); !rewrite.IsKind(err, rewrite.Malformed) {
		t.Errorf("a module that sets the fuel: %v", err)
	}
	if err := rewrite.Sniff(make([]byte, 8), 500<<20); !rewrite.IsKind(err, rewrite.NotWasm) {
		t.Errorf("500 MB of zeros: %v", err)
	}
}

// FuzzRewrite: no input panics, and what the engine compiles it still compiles
// after each rewriting.
func FuzzRewrite(f *testing.F) {
	for _, name := range testprog.Modules() {
		if b := testprog.WatBytes(f, name); len(b) < 10_000 {
			f.Add(b)
		}
	}
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().
		WithCoreFeatures(api.CoreFeaturesV2|experimental.CoreFeaturesTailCall))
	compiles := func(b []byte) bool {
		m, err := r.CompileModule(ctx, b)
		if err != nil {
			return false
		}
		return m.Close(ctx) == nil
	}
	f.Fuzz(func(t *testing.T, wasm []byte) {
		if len(wasm) > 1<<16 {
			return
		}
		for what, o := range variants {
			res, err := rewrite.Rewrite(wasm, o)
			if err != nil {
				continue
			}
			if got, want := compiles(res.Module), compiles(wasm); want && !got {
				t.Fatalf("%s: the engine refuses what it took before", what)
			} else if got && !want && o == (rewrite.Options{}) {
				// Dropped custom sections may have been the fault.
				continue
			}
		}
	})
}

func BenchmarkRewriteGoHello(b *testing.B) {
	wasm, err := os.ReadFile(testprog.Go(b, "hello"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(wasm)))
	for b.Loop() {
		if _, err := rewrite.Rewrite(wasm, rewrite.Options{Fuel: true, Image: true}); err != nil {
			b.Fatal(err)
		}
	}
}
