package none

import (
	"io"
	"sync"

	"github.com/axocoatl/isolation/driver/internal/proc"
)

// ring is a pipe in memory, as bounded as the kernel's: what connects a Go
// function to its caller, so that a caller's reader or writer that blocks does
// not keep the function from seeing that its call has ended. It costs nothing
// until it is used.
type ring struct {
	start func() // starts the other side, at the first use
	once  sync.Once

	mu     sync.Mutex
	cond   sync.Cond
	buf    *[proc.BufBytes]byte
	off, n int
	closed bool // by the writer, or for good: Read takes the rest, then io.EOF
	broken bool // by the reader: Write fails
}

func newRing(start func()) *ring {
	r := &ring{start: start}
	r.cond.L = &r.mu
	return r
}

func (r *ring) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := 0
	for done < len(b) {
		for r.n == proc.BufBytes && !r.closed && !r.broken {
			r.cond.Wait()
		}
		if r.closed || r.broken {
			return done, io.ErrClosedPipe
		}
		if r.buf == nil {
			r.buf = proc.Bufs.Get().(*[proc.BufBytes]byte)
		}
		end := (r.off + r.n) % proc.BufBytes
		k := copy(r.buf[end:min(proc.BufBytes, end+proc.BufBytes-r.n)], b[done:])
		r.n += k
		done += k
		r.cond.Broadcast()
	}
	return done, nil
}

func (r *ring) Read(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.n == 0 && !r.closed && !r.broken {
		r.cond.Wait()
	}
	if r.broken {
		return 0, io.ErrClosedPipe
	}
	if r.n == 0 && r.closed {
		return 0, io.EOF
	}
	k := copy(b, r.buf[r.off:min(proc.BufBytes, r.off+r.n)])
	r.off = (r.off + k) % proc.BufBytes
	r.n -= k
	if r.n == 0 {
		r.off = 0
	}
	r.cond.Broadcast()
	return k, nil
}

func (r *ring) releaseLocked() {
	if r.buf != nil {
		proc.Bufs.Put(r.buf)
		r.buf, r.off, r.n = nil, 0, 0
	}
}

// Finish refuses further writes; what is in the ring can still be read.
func (r *ring) Finish() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.cond.Broadcast()
	return true
}

func (r *ring) Lingers() bool { return false }

// Close also drops what is in the ring.
func (r *ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = true
	r.releaseLocked()
	r.cond.Broadcast()
	return nil
}

// ringReader and ringWriter are what a function sees of a ring.
type (
	ringReader struct{ r *ring }
	ringWriter struct{ r *ring }
)

func (v ringReader) Read(b []byte) (int, error) {
	v.r.once.Do(v.r.start)
	return v.r.Read(b)
}

func (v ringWriter) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	v.r.once.Do(v.r.start)
	return v.r.Write(b)
}
