package wasm

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/testprog"
)

// benchWarm measures one warm process with each engine, limits on, output
// collected.
func benchWarm(b *testing.B, path string, stdin []byte, limits isolation.Limits) {
	for _, e := range []Engine{Wazero, Wasmtime} {
		b.Run(string(e), func(b *testing.B) { benchEngine(b, e, path, stdin, limits) })
	}
}

func benchEngine(b *testing.B, e Engine, path string, stdin []byte, limits isolation.Limits) {
	d := newDriver(b, e)
	ctx := context.Background()
	sb, err := d.Create(ctx, "bench", wasmSpec(path))
	if err != nil {
		b.Fatal(err)
	}
	var out bytes.Buffer
	for b.Loop() {
		out.Reset()
		p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: []string{"x"}, Limits: limits}, isolation.Stdio{Stdin: bytes.NewReader(stdin), Stdout: &out})
		if err != nil {
			b.Fatal(err)
		}
		if e, err := p.Wait(ctx); err != nil || !e.Success() {
			b.Fatal(e, err)
		}
	}
}

var benchLimits = isolation.Limits{Wall: 10 * time.Second}

func BenchmarkWarmTiny(b *testing.B) { benchWarm(b, testprog.Wat(b, "tiny"), nil, benchLimits) }

func BenchmarkWarmGoHello(b *testing.B) { benchWarm(b, testprog.Go(b, "hello"), nil, benchLimits) }

func BenchmarkWarmGoTool(b *testing.B) {
	benchWarm(b, testprog.Go(b, "tool"), []byte(`{"customer":"a","items":[{"name":"x","price":1.5,"count":2}]}`), benchLimits)
}
