package mem

import (
	"io"
	"sync"
)

// input is the pipe from the caller's reader to the program. It reads ahead by
// pipeBytes at most.
type input struct {
	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed and replaced when anything changes
	buf     []byte        // guarded by mu
	eof     bool          // guarded by mu; nothing comes after buf
	closed  bool          // guarded by mu; the process ended: no Read begins any more
}

func newInput(r io.Reader) *input {
	in := &input{changed: make(chan struct{}), eof: r == nil}
	if r != nil {
		go in.pump(r)
	}
	return in
}

func (in *input) changeLocked() {
	close(in.changed)
	in.changed = make(chan struct{})
}

func (in *input) pump(r io.Reader) {
	chunk := make([]byte, chunkBytes)
	in.mu.Lock()
	defer in.mu.Unlock()
	for !in.closed {
		room := min(pipeBytes-len(in.buf), len(chunk))
		if room == 0 {
			wait := in.changed
			in.mu.Unlock()
			<-wait
			in.mu.Lock()
			continue
		}
		in.mu.Unlock()
		n, err := r.Read(chunk[:room])
		in.mu.Lock()
		in.buf = append(in.buf, chunk[:max(0, min(n, room))]...)
		in.eof = err != nil
		in.changeLocked()
		if in.eof {
			return
		}
	}
}

func (in *input) read(stop <-chan struct{}, b []byte) (int, error) {
	for {
		in.mu.Lock()
		if len(in.buf) > 0 {
			n := copy(b, in.buf)
			in.buf = in.buf[:copy(in.buf, in.buf[n:])]
			in.changeLocked()
			in.mu.Unlock()
			return n, nil
		}
		eof, wait := in.eof || in.closed, in.changed
		in.mu.Unlock()
		if eof {
			return 0, io.EOF
		}
		select {
		case <-wait:
		case <-stop:
			return 0, io.EOF
		}
	}
}

func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.closed = true
		in.changeLocked()
	}
}
