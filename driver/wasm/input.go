package wasm

import (
	"bytes"
	"io"
	"strings"
	"sync"

	"github.com/axocoatl/isolation/guest/wire"
)

// input carries the caller's stdin to the worker, never more than the worker
// gave credit for.
type input struct {
	r    io.Reader
	send func(t wire.Type, body []byte) error

	mu     sync.Mutex
	more   sync.Cond // signalled when credit comes or the process ends
	credit int       // guarded by mu
	ended  bool      // guarded by mu
}

func (in *input) init(r io.Reader, send func(wire.Type, []byte) error) {
	in.r, in.send, in.credit = r, send, wire.InitialWindow
	in.more.L = &in.mu
}

// inline returns the whole input if it is at hand, short, and reading it
// cannot block: then it goes out with EXEC.
func inline(r io.Reader) ([]byte, bool) {
	var n int
	switch r := r.(type) {
	case *bytes.Reader:
		n = r.Len()
	case *bytes.Buffer:
		n = r.Len()
	case *strings.Reader:
		n = r.Len()
	default:
		return nil, false
	}
	if n > wire.MaxData {
		return nil, false
	}
	b := make([]byte, n)
	m, _ := io.ReadFull(r, b)
	return b[:m], true
}

// pump reads and sends until the input or the process ends.
func (in *input) pump() {
	buf := make([]byte, wire.MaxData)
	for {
		n := in.wait()
		if n == 0 {
			return
		}
		n, err := in.r.Read(buf[:min(n, len(buf))])
		if in.over() {
			return
		}
		if n > 0 {
			in.take(n)
			if in.send(wire.Stdin, buf[:n]) != nil {
				return
			}
		}
		// An error of the reader is the end of the input to the program; the
		// caller knows its reader.
		if err != nil {
			_ = in.send(wire.StdinEOF, nil)
			return
		}
	}
}

// wait returns the credit, or 0 once the process has ended.
func (in *input) wait() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.credit == 0 && !in.ended {
		in.more.Wait()
	}
	if in.ended {
		return 0
	}
	return in.credit
}

func (in *input) take(n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.credit -= n
}

func (in *input) over() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.ended
}

// give adds credit. It reports false if the worker gives more than it took.
func (in *input) give(n uint64) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if n > uint64(wire.InitialWindow-in.credit) {
		return false
	}
	in.credit += int(n)
	in.more.Signal()
	return true
}

func (in *input) end() {
	if in.r == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ended = true
	in.more.Signal()
}
