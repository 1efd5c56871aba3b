package drivertest

import (
	"context"
	"io"
	"reflect"
	"sync/atomic"
	"testing"

	"github.com/axocoatl/isolation"
)

// sameSandbox reports whether one sandbox does for both.
func sameSandbox(a, b isolation.Spec) bool { return reflect.DeepEqual(a, b) }

// Benchmark measures what callers wait for:
//
//	cold      create, exec, wait and delete
//	warm      exec and wait in a sandbox that is there
//	parallel  cold, from as many goroutines as there are cores
//	stream    throughput through Echo, both ways
func Benchmark(b *testing.B, c Config) {
	c = c.withDefaults()
	d := c.New(b)
	defer func() {
		if err := d.Close(); err != nil {
			b.Errorf("Close: %v", err)
		}
	}()
	s := &suite{c: c, d: d, ids: new(atomic.Int64), skips: &skips{}}
	spec, ps, ok := c.Command(Exit0)
	if !ok {
		b.Fatalf("program %q is missing", Exit0)
	}
	ctx := context.Background()
	cold := func(b *testing.B) {
		sb, err := d.Create(ctx, s.id(), spec)
		if err != nil {
			b.Error(err)
			return
		}
		once(b, sb, ps, isolation.Stdio{})
		if err := sb.Delete(ctx); err != nil {
			b.Error(err)
		}
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			cold(b)
		}
	})
	b.Run("warm", func(b *testing.B) {
		sb := s.create(b, spec)
		for b.Loop() {
			once(b, sb, ps, isolation.Stdio{})
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				cold(b)
			}
		})
	})
	b.Run("stream", func(b *testing.B) {
		spec, ps, ok := c.Command(Echo)
		if !ok {
			b.Fatalf("program %q is missing", Echo)
		}
		const size = 16 << 20
		b.SetBytes(size)
		sb := s.create(b, spec)
		for b.Loop() {
			once(b, sb, ps, isolation.Stdio{Stdin: io.LimitReader(zeros{}, size), Stdout: io.Discard})
		}
	})
}

func once(b *testing.B, sb isolation.Sandbox, ps isolation.ProcessSpec, stdio isolation.Stdio) {
	p, err := sb.Exec(context.Background(), ps, stdio)
	if err != nil {
		b.Error(err)
		return
	}
	if e, err := p.Wait(context.Background()); err != nil || !e.Success() {
		b.Errorf("%v, %v", e, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
