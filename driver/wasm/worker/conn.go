package worker

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/axocoatl/isolation/guest/wire"
)

// transport is the worker's end of the connection. Reads and writes block: the
// worker does one thing at a time, and a thread that sleeps in read(2) wakes
// faster than one that goes through the poller.
type transport interface {
	io.ReadWriter
	// descriptors returns and forgets those that came with what was read.
	descriptors() []int
	// readable waits until a read would not block, or the timeout passed.
	// A negative timeout waits for ever.
	readable(timeout time.Duration) bool
	// linger has reads look again and again for d before they block.
	linger(d time.Duration)
}

// conn speaks the protocol on a transport, for one process at a time.
type conn struct {
	t   transport
	r   *wire.Reader
	out []byte // scratch for one frame
	cur *process
}

func newConn(t transport) *conn { return &conn{t: t, r: wire.NewReader(t)} }

// send writes one frame. An error means that the host is gone.
func (c *conn) send(t wire.Type, stream uint32, body []byte) error {
	c.out = wire.Append(c.out[:0], t, stream, body)
	_, err := c.t.Write(c.out)
	return err
}

func (c *conn) fail(stream uint32, class string, err error) error {
	m := wire.FailMessage{Class: class, Message: firstBytes(err.Error(), 4096)}
	return c.send(wire.Fail, stream, m.Append(nil))
}

// pump reads frames for the current process until done reports true. It is
// only called from the goroutine of the process, which is blocked in it.
func (c *conn) pump(done func() bool) error {
	for !done() {
		f, err := c.r.Next()
		if err != nil {
			return err
		}
		if err := c.deliver(f); err != nil {
			return err
		}
	}
	return nil
}

// drain takes what has come already, without blocking.
func (c *conn) drain() error {
	for c.r.Buffered() || c.t.readable(0) {
		f, err := c.r.Next()
		if err != nil {
			return err
		}
		if err := c.deliver(f); err != nil {
			return err
		}
	}
	return nil
}

// deliver hands a frame to the current process. Frames of earlier streams are
// late, not wrong, and are dropped.
func (c *conn) deliver(f wire.Frame) error {
	p := c.cur
	switch f.Type {
	case wire.Ping:
		return c.send(wire.Pong, f.Stream, f.Body)
	case wire.Stdin, wire.StdinEOF, wire.Window, wire.Run:
		if f.Stream < p.stream {
			return nil
		}
	default:
		return fmt.Errorf("%w: %v while a process runs", wire.ErrProtocol, f.Type)
	}
	if f.Stream != p.stream {
		return fmt.Errorf("%w: %v for stream %d, which is not there", wire.ErrProtocol, f.Type, f.Stream)
	}
	switch f.Type {
	case wire.Stdin:
		p.stdin.data = append(p.stdin.data, f.Body...)
	case wire.StdinEOF:
		p.stdin.eof = true
	case wire.Run:
		p.granted = true
	case wire.Window:
		var m wire.WindowMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		switch m.Of {
		case wire.Stdout:
			p.stdout.credit += int64(m.Bytes)
		case wire.Stderr:
			p.stderr.credit += int64(m.Bytes)
		default:
			return fmt.Errorf("%w: WINDOW for %v from the host", wire.ErrProtocol, m.Of)
		}
	}
	return nil
}

// errHostGone ends the worker: nobody is left to work for.
var errHostGone = errors.New("connection to the host is closed")

func firstBytes(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
