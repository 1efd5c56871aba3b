package drivertest

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// gate is a reader or writer whose first call waits until it is opened.
type gate struct {
	r       io.Reader
	w       io.Writer
	opened  chan struct{}
	once    sync.Once
	entered chan struct{} // closed when a call waits
	enter   sync.Once
}

func newGate(r io.Reader) *gate {
	return &gate{r: r, opened: make(chan struct{}), entered: make(chan struct{})}
}

func newWriteGate(w io.Writer) *gate {
	return &gate{w: w, opened: make(chan struct{}), entered: make(chan struct{})}
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

func (g *gate) pass() {
	g.enter.Do(func() { close(g.entered) })
	<-g.opened
}

func (g *gate) Read(b []byte) (int, error) {
	g.pass()
	return g.r.Read(b)
}

func (g *gate) Write(b []byte) (int, error) {
	g.pass()
	return g.w.Write(b)
}

// noise is a stream of pseudo-random bytes that can be made again.
type noise struct {
	src  *rand.ChaCha8
	left int64
	sum  hash.Hash
	read atomic.Int64
}

func newNoise(n int64) *noise {
	return &noise{src: rand.NewChaCha8([32]byte{1, 2, 3}), left: n, sum: sha256.New()}
}

func (n *noise) Read(b []byte) (int, error) {
	if n.left == 0 {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), n.left)]
	_, _ = n.src.Read(b) // never fails
	n.sum.Write(b)
	n.left -= int64(len(b))
	n.read.Add(int64(len(b)))
	return len(b), nil
}

// digest is a writer that keeps the sum of what it gets.
type digest struct {
	mu  sync.Mutex
	sum hash.Hash
	n   int64
}

func newDigest() *digest { return &digest{sum: sha256.New()} }

func (d *digest) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sum.Write(b)
	d.n += int64(len(b))
	return len(b), nil
}

func (d *digest) is(n *noise) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Equal(d.sum.Sum(nil), n.sum.Sum(nil))
}

func (d *digest) bytes() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

// failing is a writer that takes so many bytes and then returns an error.
type failing struct {
	takes int
	err   error
	mu    sync.Mutex
	n     int
	after int // Writes after the one that failed
	bad   bool
}

func (f *failing) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bad {
		f.after++
	}
	if f.n+len(b) <= f.takes {
		f.n += len(b)
		return len(b), nil
	}
	took := f.takes - f.n
	f.n, f.bad = f.takes, true
	return took, f.err
}
