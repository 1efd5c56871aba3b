package wasm

import (
	"context"
	"runtime"
	"time"

	"github.com/axocoatl/isolation"
)

// slots bounds the modules that compute at once. A blocked module gives its
// slot back; whoever waited longest gets it.
type slots chan struct{}

func newSlots(n int) slots { return make(slots, n) }

// acquire waits for a slot, for ctx to end, or for gone to be closed.
func (s slots) acquire(ctx context.Context, gone <-chan struct{}) error {
	if s.tryAcquire() {
		return nil
	}
	select {
	case s <- struct{}{}:
		return nil
	case <-gone:
		return isolation.ErrNotFound
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s slots) tryAcquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) release() { <-s }

// quiet reports whether cores are left over: then waiting actively for a
// worker takes no time from another.
func (s slots) quiet() bool { return len(s) <= 1 && runtime.NumCPU() > 1 }

// linger is how long the two sides of a quiet host look for the other's answer
// before they sleep. To wake a sleeping core costs about 20 us.
const linger = 50 * time.Microsecond
