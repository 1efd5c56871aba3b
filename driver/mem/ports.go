package mem

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/axocoatl/isolation"
)

// A port of a sandbox is a port of the host's loopback address, which the sandbox
// knows under the number that was asked for.

type portDialer struct {
	isolation.Sandbox
	handle
}

func (w portDialer) Unwrap() any { return w.Sandbox }

// DialPort implements isolation.PortDialer.
func (w portDialer) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	err := w.held("dial port", "")
	if err != nil {
		return nil, err
	}
	var c net.Conn
	if err = w.s.usable(port); err == nil {
		c, err = w.s.dial(ctx, port)
	}
	if err != nil {
		return nil, w.s.fail("dial port", "", err)
	}
	return c, nil
}

type portListener struct {
	isolation.Sandbox
	handle
}

func (w portListener) Unwrap() any { return w.Sandbox }

// ListenPort implements isolation.PortListener.
func (w portListener) ListenPort(_ context.Context, port uint16) (net.Listener, error) {
	err := w.held("listen on port", "")
	if err != nil {
		return nil, err
	}
	var l net.Listener
	if err = w.s.usable(port); err == nil {
		l, err = w.s.listen(w.s.ctx, port)
	}
	if err != nil {
		return nil, w.s.fail("listen on port", "", err)
	}
	return l, nil
}

func (s *sandbox) usable(port uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.deleted:
		return isolation.ErrNotFound
	case s.lost:
		return fmt.Errorf("sandbox is lost: %w", isolation.ErrFailedPrecondition)
	case s.paused:
		return fmt.Errorf("sandbox is paused: %w", isolation.ErrFailedPrecondition)
	case port == 0:
		return fmt.Errorf("port 0: %w", isolation.ErrInvalidArgument)
	}
	return nil
}

func (s *sandbox) dial(ctx context.Context, port uint16) (net.Conn, error) {
	s.mu.Lock()
	address := s.ports[port]
	s.mu.Unlock()
	if address == "" {
		return nil, fmt.Errorf("port %d: nobody listens: %w", port, isolation.ErrFailedPrecondition)
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("port %d: %w: %w", port, err, isolation.ErrFailedPrecondition)
	}
	return c, nil
}

// portServer is a port that is listened on.
type portServer struct {
	net.Listener
	close func() error
}

func (l *portServer) Close() error { return l.close() }

// listen listens until ctx ends.
func (s *sandbox) listen(ctx context.Context, port uint16) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	taken := s.ports[port] != ""
	if !taken {
		s.ports[port] = l.Addr().String()
	}
	s.mu.Unlock()
	if taken {
		l.Close()
		return nil, fmt.Errorf("port %d: %w", port, isolation.ErrAlreadyExists)
	}
	out := &portServer{Listener: l, close: sync.OnceValue(func() error {
		s.mu.Lock()
		delete(s.ports, port)
		s.mu.Unlock()
		return l.Close()
	})}
	context.AfterFunc(ctx, func() { _ = out.Close() })
	return out, nil
}

// Listen listens on a port of the sandbox until the process ends.
func (c *Proc) Listen(port uint16) (net.Listener, error) {
	c.check()
	return c.p.s.listen(c.p.ctx, port)
}

// Dial connects to a port of the sandbox, until the process ends.
func (c *Proc) Dial(port uint16) (net.Conn, error) {
	c.check()
	conn, err := c.p.s.dial(c.p.ctx, port)
	if err == nil {
		context.AfterFunc(c.p.ctx, func() { conn.Close() })
	}
	return conn, err
}

func serve(c *Proc) int {
	l, err := c.Listen(uint16(number(c)))
	if err != nil {
		return 1
	}
	text(c.Stdout(), "ready\n")
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		stop := context.AfterFunc(c.Context(), func() { conn.Close() })
		go func() {
			defer stop()
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}()
	}
}

func connect(c *Proc) int {
	conn, err := c.Dial(uint16(number(c)))
	if err != nil {
		return 1
	}
	defer conn.Close()
	if args := c.Args(); len(args) > 2 {
		text(conn, args[2])
	}
	_ = conn.(*net.TCPConn).CloseWrite() // then nobody answers
	b, err := io.ReadAll(conn)
	text(c.Stdout(), string(b))
	if err != nil {
		return 1
	}
	return 0
}
