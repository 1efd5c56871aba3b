package guestconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// Ports are those of the sandbox's network. It implements [isolation.PortDialer] and
// [isolation.PortListener].
type Ports struct{ Conn *Conn }

// DialPort connects to what listens on a port.
func (p *Ports) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	s, err := p.begin(wire.PortConnect, port)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.answer:
	case <-ctx.Done():
		s.Close()
		return nil, context.Cause(ctx)
	}
	return s.made()
}

// ListenPort has the guest listen on a port.
func (p *Ports) ListenPort(ctx context.Context, port uint16) (net.Listener, error) {
	if err := p.ask(ctx, wire.PortListen, port); err != nil {
		return nil, err
	}
	return &portListener{p: p, port: port, closed: make(chan struct{})}, nil
}

func (p *Ports) ask(ctx context.Context, op wire.PortOp, port uint16) error {
	if port == 0 {
		return errNoPort
	}
	m := wire.PortMessage{Op: op, Port: uint64(port)}
	_, err := p.Conn.ask(ctx, wire.Port, wire.Port, m.Append(nil))
	return err
}

var errNoPort = fmt.Errorf("port 0: %w", isolation.ErrInvalidArgument)

func (p *Ports) begin(op wire.PortOp, port uint16) (*portConn, error) {
	if port == 0 {
		return nil, errNoPort
	}
	s := &portConn{c: p.Conn, port: port, answer: make(chan struct{}), over: make(chan struct{}), credit: wire.InitialWindow}
	s.change = sync.NewCond(&s.mu)
	s.reading.moved, s.writing.moved = make(chan struct{}), make(chan struct{})
	m := wire.PortMessage{Op: op, Port: uint64(port)}
	if err := p.Conn.begin(s, func(n uint32) { s.stream = n }, wire.Port, m.Append(nil)); err != nil {
		return nil, err
	}
	return s, nil
}

// portListener asks for one connection at a time.
type portListener struct {
	p      *Ports
	port   uint16
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *portListener) Accept() (net.Conn, error) {
	if isClosed(l.closed) {
		return nil, net.ErrClosed
	}
	s, err := l.p.begin(wire.PortAccept, l.port)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.answer:
	case <-l.closed:
		s.Close()
		return nil, net.ErrClosed
	}
	return s.made()
}

// Addr implements net.Listener.
func (l *portListener) Addr() net.Addr { return portAddr(l.port) }

// Close implements net.Listener.
func (l *portListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		ctx, cancel := context.WithTimeout(context.Background(), usageTimeout)
		defer cancel()
		_ = l.p.ask(ctx, wire.PortClose, l.port) // a guest that is gone listens no more
	})
	return nil
}

// portAddr is an address inside the sandbox.
type portAddr uint16

// Network implements net.Addr.
func (portAddr) Network() string { return "sandbox" }

func (a portAddr) String() string { return net.JoinHostPort("localhost", strconv.Itoa(int(a))) }

// portConn is a connection of the sandbox. It implements net.Conn, and CloseWrite.
type portConn struct {
	c      *Conn
	port   uint16
	stream uint32
	answer chan struct{} // closed when it is made, or cannot be
	over   chan struct{} // closed when nothing is sent any more

	mu               sync.Mutex
	change           *sync.Cond
	isMade           bool
	failed           error  // why it is not, or is no more
	in               []byte // came, and was not read
	taken            int    // was read, and no credit given for it
	credit           int    // of what is sent
	reading, writing limit
	inEnd            bool // no more comes
	outEnd           bool // this side sends no more
	closed           bool
}

// limit is a deadline.
type limit struct {
	passed bool
	moved  chan struct{} // closed when it has passed, or is another
	timer  *time.Timer
}

// frame implements talker.
func (s *portConn) frame(f wire.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	made := isClosed(s.answer)
	switch {
	case isClosed(s.over):
		// The reader has found this stream just before it was over here: what was on its
		// way is nobody's, as it is when the stream is not found.
	case f.Type == wire.Fail:
		s.endLocked(Failure(f.Body))
	case f.Type == wire.Port && !made:
		var m wire.PortMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		s.isMade = true
		close(s.answer)
	case f.Type == wire.Stdout && made && !s.inEnd:
		if len(f.Body) == 0 {
			s.inEnd = true
			s.overLocked()
			break
		}
		if len(s.in)+s.taken+len(f.Body) > wire.InitialWindow {
			return fmt.Errorf("%w: %d bytes of a connection with %d on their way: more than the credit", wire.ErrProtocol, len(f.Body), len(s.in)+s.taken)
		}
		s.in = append(s.in, f.Body...)
	case f.Type == wire.Window && made:
		var m wire.WindowMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		if m.Of != wire.Stdin || m.Bytes > uint64(wire.InitialWindow-s.credit) {
			return fmt.Errorf("%w: WINDOW of %d bytes for %s, with %d", wire.ErrProtocol, m.Bytes, m.Of, s.credit)
		}
		s.credit += int(m.Bytes)
	default:
		return fmt.Errorf("%w: a guest does not send %s for a connection now", wire.ErrProtocol, f.Type)
	}
	s.change.Broadcast()
	return nil
}

// lost implements talker.
func (s *portConn) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(fmt.Errorf("%w (%w)", err, isolation.ErrUnavailable))
	s.change.Broadcast()
}

// endLocked ends both directions. What came can still be read.
func (s *portConn) endLocked(err error) {
	if s.failed == nil {
		s.failed = err
	}
	if !isClosed(s.answer) {
		close(s.answer)
	}
	s.inEnd, s.outEnd = true, true
	s.overLocked()
}

// overLocked forgets the stream when both directions have ended.
func (s *portConn) overLocked() {
	if !s.inEnd || !s.outEnd {
		return
	}
	if !isClosed(s.over) {
		close(s.over)
		s.c.forget(s.stream)
		s.c.wake()
	}
}

// made returns the connection once it was answered. One that has ended since is
// still read.
func (s *portConn) made() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isMade {
		return nil, s.failed
	}
	return s, nil
}

// Read implements net.Conn.
func (s *portConn) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.in) == 0 || s.closed || s.reading.passed {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case s.reading.passed:
			return 0, os.ErrDeadlineExceeded
		case s.failed != nil:
			return 0, s.failed
		case s.inEnd:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		s.change.Wait()
	}
	n := copy(b, s.in)
	if s.in = s.in[n:]; len(s.in) == 0 {
		s.in = nil
	}
	if s.taken += n; s.taken >= wire.InitialWindow/4 && !s.inEnd {
		m := wire.WindowMessage{Of: wire.Stdout, Bytes: uint64(s.taken)}
		s.taken = 0
		_ = s.c.send(wire.Window, s.stream, m.Append(nil)) // the reader sees it as well
	}
	return n, nil
}

// Write implements net.Conn.
func (s *portConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k, moved, err := s.room(len(b))
		if err != nil {
			return n, err
		}
		err = s.c.sendData(wire.Stdin, s.stream, b[:k], moved)
		if errors.Is(err, io.ErrClosedPipe) {
			// The deadline is another, or has passed: nothing was sent.
			s.mu.Lock()
			s.credit += k
			s.mu.Unlock()
			continue
		}
		if err != nil {
			return n, err
		}
		n += k
		b = b[k:]
	}
	return n, nil
}

// room waits for credit, and takes up to n bytes of it.
func (s *portConn) room(n int) (int, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.credit == 0 || s.outEnd || s.writing.passed {
		switch {
		case s.closed:
			return 0, nil, net.ErrClosed
		case s.failed != nil:
			return 0, nil, s.failed
		case s.outEnd:
			return 0, nil, io.ErrClosedPipe
		case s.writing.passed:
			return 0, nil, os.ErrDeadlineExceeded
		}
		s.change.Wait()
	}
	n = min(n, s.credit, wire.MaxData)
	s.credit -= n
	return n, s.writing.moved, nil
}

// CloseWrite says that nothing more is sent; what comes can still be read.
func (s *portConn) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.outEnd {
		return nil
	}
	s.outEnd = true
	err := s.c.send(wire.StdinEOF, s.stream, nil)
	s.overLocked()
	s.change.Broadcast()
	return err
}

// Close implements net.Conn.
func (s *portConn) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed, s.in = true, nil
	if !isClosed(s.over) {
		m := wire.KillMessage{Signal: 9}
		_ = s.c.send(wire.Kill, s.stream, m.Append(nil)) // a guest that is gone has ended it
	}
	s.endLocked(net.ErrClosed)
	for _, l := range []*limit{&s.reading, &s.writing} {
		s.setLocked(l, time.Time{})
	}
	s.change.Broadcast()
	return nil
}

// LocalAddr implements net.Conn.
func (s *portConn) LocalAddr() net.Addr { return portAddr(0) }

// RemoteAddr implements net.Conn.
func (s *portConn) RemoteAddr() net.Addr { return portAddr(s.port) }

// SetDeadline implements net.Conn.
func (s *portConn) SetDeadline(t time.Time) error { return s.set(t, &s.reading, &s.writing) }

// SetReadDeadline implements net.Conn.
func (s *portConn) SetReadDeadline(t time.Time) error { return s.set(t, &s.reading) }

// SetWriteDeadline implements net.Conn.
func (s *portConn) SetWriteDeadline(t time.Time) error { return s.set(t, &s.writing) }

func (s *portConn) set(t time.Time, limits ...*limit) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	for _, l := range limits {
		s.setLocked(l, t)
	}
	s.change.Broadcast()
	return nil
}

func (s *portConn) setLocked(l *limit, t time.Time) {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	close(l.moved)
	moved := make(chan struct{})
	l.moved, l.passed = moved, false
	s.c.wake() // who waits for room has the old one
	switch d := time.Until(t); {
	case t.IsZero():
	case d <= 0:
		l.passed = true
	default:
		l.timer = time.AfterFunc(d, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if l.moved == moved {
				l.passed = true
				s.setPassedLocked(l)
			}
		})
	}
}

// setPassedLocked tells all who wait that a deadline has passed.
func (s *portConn) setPassedLocked(l *limit) {
	close(l.moved)
	l.moved = make(chan struct{})
	s.change.Broadcast()
	s.c.wake()
}
