package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
)

const (
	// maxConns bounds the connections of a session, and those that are waited for.
	maxConns = 256
	// maxListeners bounds the ports that are listened on.
	maxListeners = 16
	// listenBacklog is how many wait who are not asked for yet.
	listenBacklog = 128
	// connectPatience bounds the wait for one who listens and does not accept.
	connectPatience = 10 * time.Second
	// linger is how long who is connected has, when the host has closed, to take
	// what was sent before, and to close.
	linger = 5 * time.Second
)

// port begins to connect, to accept, or does the rest at once: what the host sends
// next finds it done.
func (s *session) port(stream uint32, m *wire.PortMessage) error {
	err := s.g.mayStart()
	if err == nil && m.Port == 0 {
		err = &classError{classInvalid, errors.New("port 0")}
	}
	switch {
	case err != nil:
	case m.Op == wire.PortListen:
		err = s.g.ports.listen(uint16(m.Port))
		return s.answer(wire.Port, stream, nil, err)
	case m.Op == wire.PortClose:
		s.g.ports.close(uint16(m.Port))
		return s.answer(wire.Port, stream, nil, nil)
	case m.Op != wire.PortConnect && m.Op != wire.PortAccept:
		err = &classError{classInvalid, fmt.Errorf("operation %d", m.Op)}
	case s.conns.Add(1) > maxConns:
		s.conns.Add(-1)
		err = &classError{classExhausted, fmt.Errorf("%d connections are open", maxConns)}
	}
	if err != nil {
		return s.answer(wire.Port, stream, nil, err)
	}
	o := newFileOp(s, stream)
	if err := s.open(stream, o); err != nil {
		return err
	}
	go o.connection(m)
	return nil
}

// connection makes a connection and carries it until both directions, or the
// stream, have ended.
func (o *fileOp) connection(m *wire.PortMessage) {
	defer o.s.conns.Add(-1)
	defer o.s.forget(o.stream)
	var f *os.File
	var err error
	if m.Op == wire.PortConnect {
		f, err = o.connect(uint16(m.Port))
	} else {
		f, err = o.accept(uint16(m.Port))
	}
	if err != nil {
		if !errors.Is(err, errEnded) {
			_ = o.s.answer(wire.Port, o.stream, nil, err) // the reader sees it as well
		}
		return
	}
	defer f.Close()
	o.onEnd(func() { _ = f.SetDeadline(time.Now().Add(linger)) })
	if o.s.answer(wire.Port, o.stream, nil, nil) != nil {
		return
	}
	given := make(chan struct{})
	go func() {
		defer close(given)
		o.give(f)
	}()
	err = o.take(f)
	if err != nil && !errors.Is(err, errEnded) {
		_ = o.s.answer(wire.Port, o.stream, nil, &classError{"", err})
	}
	if err != nil {
		o.lost()
	}
	<-given
	if errors.Is(err, errEnded) {
		// What is closed with something unread is reset, and what was sent may be
		// lost with it (tcp(7)).
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{f})
	}
}

// give gives the connection what the host sends, also what it has sent before it
// closed. One that takes nothing more is no error here: that there is nothing more to
// be read is.
func (o *fileOp) give(f *os.File) {
	takes := true
	for over := false; !over; {
		b, err := o.receive()
		if over = err != nil || b == nil; err != nil {
			o.mu.Lock()
			b = o.in
			o.in = nil
			o.mu.Unlock()
		}
		if takes && len(b) > 0 {
			_, err = f.Write(b)
			takes = err == nil
		}
	}
	_ = control(f, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) })
}

// take sends what comes from the connection, to its end.
func (o *fileOp) take(f *os.File) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := f.Read(buf)
		if serr := o.send(buf[:n]); serr != nil {
			return serr
		}
		if err == io.EOF {
			return o.s.l.send(wire.Stdout, o.stream, nil, -1)
		}
		if err != nil {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.ended {
				return errEnded
			}
			return err
		}
	}
}

func control(f *os.File, call func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	err = rc.Control(func(fd uintptr) { cerr = call(int(fd)) })
	return errors.Join(err, cerr)
}

// loopback are the addresses of the sandbox itself, in the order in which they are
// tried.
func loopback(port uint16) []unix.Sockaddr {
	return []unix.Sockaddr{
		&unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}},
	}
}

func tcpSocket(to unix.Sockaddr) (int, error) {
	domain := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// connect connects to who listens on a port.
func (o *fileOp) connect(port uint16) (*os.File, error) {
	var first error
	for _, to := range loopback(port) {
		f, err := o.connectTo(to)
		if err == nil || errors.Is(err, errEnded) {
			return f, err
		}
		if first == nil {
			first = err
		}
	}
	class := classFailed
	if errors.Is(first, unix.EMFILE) || errors.Is(first, unix.ENFILE) || errors.Is(first, unix.ENOMEM) || errors.Is(first, unix.ENOBUFS) {
		class = classExhausted
	}
	return nil, &classError{class, fmt.Errorf("port %d: %w", port, first)}
}

func (o *fileOp) connectTo(to unix.Sockaddr) (*os.File, error) {
	fd, err := tcpSocket(to)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, to)
	f := os.NewFile(uintptr(fd), "connection")
	if err == unix.EINPROGRESS || err == unix.EINTR || err == unix.EALREADY {
		_ = f.SetWriteDeadline(time.Now().Add(connectPatience))
		o.onEnd(func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
		err = awaitConnect(f)
		o.onEnd(nil)
		_ = f.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		err = o.stillWanted()
	}
	if err != nil {
		f.Close()
		if o.stillWanted() != nil {
			err = errEnded
		}
		return nil, err
	}
	_ = control(f, noDelay)
	return f, nil
}

// stillWanted fails when the host has ended the operation.
func (o *fileOp) stillWanted() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return errEnded
	}
	return nil
}

// awaitConnect waits for the end of a connect(2) that does not wait.
func awaitConnect(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	err = rc.Write(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, _ := unix.Poll(fds, 0); n == 0 {
			return false
		}
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if cerr = err; err == nil && n != 0 {
			cerr = unix.Errno(n)
		}
		return true
	})
	return errors.Join(err, cerr)
}

func noDelay(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// ports are those that this process listens on for the host.
type ports struct {
	mu   sync.Mutex
	open map[uint16]*listener // guarded by mu
}

type listener struct {
	f     *os.File
	conns chan *os.File // those that came; whoever asks takes the next
	gone  chan struct{} // closed with it
}

func (p *ports) listen(port uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.open[port] != nil:
		return nil
	case len(p.open) >= maxListeners:
		return &classError{classExhausted, fmt.Errorf("%d ports are listened on", maxListeners)}
	}
	to := loopback(port)[0]
	fd, err := tcpSocket(to)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "port")
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		if err = unix.Bind(fd, to); err == nil {
			err = unix.Listen(fd, listenBacklog)
		}
	}
	if err != nil {
		f.Close()
		class := classFailed
		if err == unix.EADDRINUSE {
			class = classExists
		}
		return &classError{class, fmt.Errorf("listen on port %d: %w", port, err)}
	}
	l := &listener{f, make(chan *os.File), make(chan struct{})}
	if p.open == nil {
		p.open = map[uint16]*listener{}
	}
	p.open[port] = l
	go l.serve()
	return nil
}

func (p *ports) find(port uint16) *listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[port]
}

func (p *ports) close(port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.open[port]; l != nil {
		delete(p.open, port)
		close(l.gone)
		l.f.Close()
	}
}

// serve accepts: one ahead of who asks, the rest wait in the kernel.
func (l *listener) serve() {
	rc, err := l.f.SyscallConn()
	for err == nil {
		n := -1
		var aerr error
		err = rc.Read(func(fd uintptr) bool {
			n, _, aerr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return aerr != unix.EAGAIN
		})
		switch {
		case err != nil:
			return
		case aerr == unix.EMFILE || aerr == unix.ENFILE || aerr == unix.ENOMEM || aerr == unix.ENOBUFS:
			time.Sleep(10 * time.Millisecond) // until others have ended
			continue
		case aerr != nil:
			continue // that one was given up
		}
		f := os.NewFile(uintptr(n), "connection")
		_ = control(f, noDelay)
		select {
		case l.conns <- f:
		case <-l.gone:
			f.Close()
			return
		}
	}
}

// accept waits for the next connection of a port.
func (o *fileOp) accept(port uint16) (*os.File, error) {
	l := o.s.g.ports.find(port)
	if l == nil {
		return nil, &classError{classFailed, fmt.Errorf("port %d is not listened on", port)}
	}
	ended := make(chan struct{})
	o.onEnd(sync.OnceFunc(func() { close(ended) }))
	defer o.onEnd(nil)
	select {
	case f := <-l.conns:
		return f, nil
	case <-l.gone:
		return nil, &classError{classFailed, fmt.Errorf("port %d is not listened on any more", port)}
	case <-ended:
		return nil, errEnded
	}
}
