package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/axocoatl/isolation/guest/wire"
)

var native = binary.NativeEndian

// fileOp is a file operation under way, or a connection of a port: data goes both
// ways as the credit allows. It ends with the host's connection.
type fileOp struct {
	s      *session
	stream uint32

	mu     sync.Mutex
	change *sync.Cond
	credit int // of what we send
	in     []byte
	eof    bool
	ended  bool
	atEnd  func()
}

// maxFileOps bounds those of a connection; a watch is one of them.
const maxFileOps = 64

// errEnded is why an operation stops that the host does not want any more.
var errEnded = &classError{"", errors.New("the operation was ended")}

// file begins an operation.
func (s *session) file(stream uint32, m *wire.FileMessage) error {
	if err := s.g.mayStart(); err != nil {
		return s.answer(wire.Fail, stream, nil, err)
	}
	if s.files.Add(1) > maxFileOps {
		s.files.Add(-1)
		return s.answer(wire.Fail, stream, nil, &classError{classExhausted, fmt.Errorf("%d file operations are under way", maxFileOps)})
	}
	o := newFileOp(s, stream)
	if err := s.open(stream, o); err != nil {
		return err
	}
	go o.run(m)
	return nil
}

func newFileOp(s *session, stream uint32) *fileOp {
	o := &fileOp{s: s, stream: stream, credit: wire.InitialWindow}
	o.change = sync.NewCond(&o.mu)
	return o
}

func (o *fileOp) run(m *wire.FileMessage) {
	defer o.s.files.Add(-1)
	e, err := o.do(m)
	o.s.forget(o.stream)
	o.mu.Lock()
	ended := o.ended
	o.mu.Unlock()
	if ended {
		return // nobody waits for an answer
	}
	var body []byte
	if err == nil {
		if m.Op == wire.FileRead || m.Op == wire.FileList {
			_ = o.s.l.send(wire.Stdout, o.stream, nil, -1)
		}
		body = e.Append(nil)
	}
	_ = o.s.answer(wire.File, o.stream, body, err) // the reader sees it as well
}

// frame implements talker.
func (o *fileOp) frame(f wire.Frame) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch f.Type {
	case wire.Stdin:
		if len(o.in)+len(f.Body) > wire.InitialWindow || o.eof {
			return fmt.Errorf("%w: %d bytes of a file beyond the credit, or its end", wire.ErrProtocol, len(f.Body))
		}
		o.in = append(o.in, f.Body...)
	case wire.StdinEOF:
		o.eof = true
	case wire.Window:
		var m wire.WindowMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		if m.Of != wire.Stdout || o.credit+int(m.Bytes) > wire.InitialWindow {
			return fmt.Errorf("%w: WINDOW of %d bytes with %d", wire.ErrProtocol, m.Bytes, o.credit)
		}
		o.credit += int(m.Bytes)
	case wire.Kill:
		o.endLocked()
	default:
		return notSent(f)
	}
	o.change.Broadcast()
	return nil
}

func (o *fileOp) lost() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.endLocked()
}

func (o *fileOp) endLocked() {
	o.ended = true
	if o.atEnd != nil {
		o.atEnd()
	}
	o.change.Broadcast()
}

// onEnd has f called when the operation is ended, and what was set before not any
// more; nil: nothing.
func (o *fileOp) onEnd(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.atEnd = f; o.ended && f != nil {
		f()
	}
}

// send sends data as the credit allows.
func (o *fileOp) send(b []byte) error {
	for len(b) > 0 {
		o.mu.Lock()
		for o.credit == 0 && !o.ended {
			o.change.Wait()
		}
		n := min(len(b), o.credit, wire.MaxData/2)
		o.credit -= n
		ended := o.ended
		o.mu.Unlock()
		if ended {
			return errEnded
		}
		if err := o.s.l.send(wire.Stdout, o.stream, b[:n], -1); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// receive returns what has come, and nil at the end.
func (o *fileOp) receive() ([]byte, error) {
	o.mu.Lock()
	for len(o.in) == 0 && !o.eof && !o.ended {
		o.change.Wait()
	}
	if o.ended {
		o.mu.Unlock()
		return nil, errEnded // what has come stays
	}
	b := o.in
	o.in = nil
	o.mu.Unlock()
	if len(b) == 0 {
		return nil, nil
	}
	m := wire.WindowMessage{Of: wire.Stdin, Bytes: uint64(len(b))}
	return b, o.s.l.send(wire.Window, o.stream, m.Append(nil), -1)
}
