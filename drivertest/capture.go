package drivertest

import (
	"bytes"
	"sync"
	"testing"
	"time"
)

// capture is a writer that keeps what it gets and knows what came too late.
type capture struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	over   bool
	late   int
	writes chan struct{} // has a token after a write
}

func newCapture() *capture { return &capture{writes: make(chan struct{}, 1)} }

func (c *capture) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		c.late += len(b)
	}
	select {
	case c.writes <- struct{}{}:
	default:
	}
	return c.buf.Write(b)
}

func (c *capture) noMore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

func (c *capture) lateBytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.late
}

func (c *capture) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.buf.Bytes())
}

func (c *capture) String() string { return string(c.bytes()) }

// awaitReady waits until the program wrote that it is.
func (r *run) awaitReady(t testing.TB) {
	t.Helper()
	r.await(t, "ready\n")
}

// await waits until the program has written this, and nothing else.
func (r *run) await(t testing.TB, want string) {
	t.Helper()
	timeout := time.After(r.s.c.Patience)
	for r.out.String() != want {
		select {
		case <-r.out.writes:
		case <-timeout:
			t.Fatalf("the program wrote %.80q in %v, want %q", r.out.bytes(), r.s.c.Patience, want)
		}
	}
}
