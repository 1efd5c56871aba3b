package mem

import (
	"fmt"
	"io"
	"sync"

	"github.com/axocoatl/isolation"
)

// input is the pipe from the caller's reader to the program. It reads ahead by
// pipeBytes at most.
type input struct {
	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed and replaced when anything changes
	buf     []byte        // guarded by mu
	eof     bool          // guarded by mu; nothing comes after buf
	closed  bool          // guarded by mu; the process ended: no Read begins any more
	total   int64         // guarded by mu; given to the process by now
	feeder  int           // guarded by mu; who may give: the last one that attached
	fed     bool          // guarded by mu; somebody gives
}

func newInput(r io.Reader) *input {
	in := &input{changed: make(chan struct{}), eof: r == nil}
	if r != nil {
		in.fed = true
		go in.pump(r, 0, 0)
	}
	return in
}

// attach goes on with input from a reader that begins at an offset; -1: at the
// end of what was given.
func (in *input) attach(r io.Reader, from int64) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed || in.eof:
		return fmt.Errorf("the input has ended: %w", isolation.ErrFailedPrecondition)
	case in.fed:
		return fmt.Errorf("somebody gives input: %w", isolation.ErrFailedPrecondition)
	case from > in.total:
		return fmt.Errorf("input from %d on: %d bytes were given: %w", from, in.total, isolation.ErrInvalidArgument)
	case from < 0:
		from = in.total
	}
	in.fed = true
	go in.pump(r, in.feeder, in.total-from)
	return nil
}

// letGo takes nothing more from who gives.
func (in *input) letGo() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fed = false
	in.feeder++
	in.changeLocked()
}

func (in *input) changeLocked() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// pump gives what r has behind the first skip bytes.
func (in *input) pump(r io.Reader, feeder int, skip int64) {
	chunk := make([]byte, chunkBytes)
	in.mu.Lock()
	defer in.mu.Unlock()
	for !in.closed && in.feeder == feeder {
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
		if in.feeder != feeder {
			return // it was let go meanwhile
		}
		b := chunk[:max(0, min(n, room))]
		known := min(skip, int64(len(b)))
		skip -= known
		in.buf = append(in.buf, b[known:]...)
		in.total += int64(len(b)) - known
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
