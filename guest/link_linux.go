package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
)

// link is one connection of the host.
type link struct {
	*wire.Reader
	t transport

	shutting sync.Once

	wmu    sync.Mutex
	closed bool
}

// transport carries the bytes of one connection.
type transport interface {
	io.Reader
	// write writes all of b, with a descriptor unless fd is -1.
	write(b []byte, fd int) error
	// shut makes reads and writes fail, also those that are under way.
	shut()
	// close is called once, when nobody reads or writes any more.
	close()
}

func newLink(t transport) *link { return &link{Reader: wire.NewReader(t), t: t} }

// send writes a frame, with a descriptor unless fd is -1. An error is seen by
// the reader as well.
func (l *link) send(t wire.Type, stream uint32, body []byte, fd int) error {
	return l.write(wire.Append(nil, t, stream, body), fd)
}

func (l *link) write(frame []byte, fd int) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return os.ErrClosed
	}
	return l.t.write(frame, fd)
}

// shut ends what is under way on the connection, and lets nothing begin. It may
// be called at any time.
func (l *link) shut() { l.shutting.Do(l.t.shut) }

// end closes the connection. It is for the reader, when it reads no more: the
// number of a descriptor is another's once it is closed.
func (l *link) end() {
	l.shut()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.closed = true
	l.t.close()
}

// passes reports whether descriptors can go with a frame.
func (l *link) passes() bool {
	s, ok := l.t.(*socket)
	return ok && s.unix
}

// take returns the next n descriptors that came.
func (l *link) take(n int) ([]*os.File, error) {
	s, ok := l.t.(*socket)
	if !ok {
		return nil, fmt.Errorf("%w: this transport carries no descriptors", wire.ErrProtocol)
	}
	return s.take(n)
}

// socket is a unix socket, on which frames may come with descriptors. It
// blocks: a thread that waits in the kernel is woken sooner than one that the
// runtime parks.
type socket struct {
	fd    int
	unix  bool  // it passes descriptors
	found []int // descriptors that came and were not taken yet
}

// Read implements io.Reader. It keeps the descriptors.
func (c *socket) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*16))
	for {
		n, oobn, _, _, err := unix.Recvmsg(c.fd, b, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("recvmsg", err)
		case n == 0:
			return 0, io.EOF
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		for i := 0; err == nil && i < len(messages); i++ {
			var fds []int
			if fds, err = unix.ParseUnixRights(&messages[i]); err == nil {
				c.found = append(c.found, fds...)
			}
		}
		return n, err
	}
}

func (c *socket) take(n int) ([]*os.File, error) {
	if len(c.found) < n {
		return nil, fmt.Errorf("%w: %d descriptors came, want %d", wire.ErrProtocol, len(c.found), n)
	}
	files := make([]*os.File, n)
	for i, fd := range c.found[:n] {
		files[i] = os.NewFile(uintptr(fd), "stdio")
	}
	c.found = c.found[n:]
	return files, nil
}

func (c *socket) write(b []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	for len(b) > 0 {
		n, err := unix.SendmsgN(c.fd, b, rights, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("sendmsg", err)
		}
		b, rights = b[n:], nil
	}
	return nil
}

func (c *socket) shut() { _ = unix.Shutdown(c.fd, unix.SHUT_RDWR) }

func (c *socket) close() {
	unix.Close(c.fd)
	for _, fd := range c.found {
		unix.Close(fd)
	}
}

// accept waits for the next connection on a listening socket.
func accept(fd int) (*link, error) {
	for {
		n, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			domain, err := unix.GetsockoptInt(n, unix.SOL_SOCKET, unix.SO_DOMAIN)
			return newLink(&socket{fd: n, unix: err == nil && domain == unix.AF_UNIX}), nil
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return nil, os.NewSyscallError("accept4", err)
		}
	}
}

// isListening reports whether a descriptor is a listening socket. One that is no
// socket is an error.
func isListening(fd int) (bool, error) {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return false, fmt.Errorf("descriptor %d is not a socket: this program is started by the engine, not by hand: %w", fd, err)
	}
	return n != 0, nil
}

// stream is a transport of bytes alone: two pipes, or a serial port.
type stream struct {
	in, out *os.File
	keep    bool // the files are used again by the next connection
	// mark is looked for in what comes; see servePort.
	mark func() []byte
	tail []byte // the last bytes that came, fewer than a mark has
	rest []byte // came before this connection began
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.readRaw(b)
	if s.mark == nil || n <= 0 {
		return n, err
	}
	mark := s.mark()
	if len(mark) == 0 {
		return n, err
	}
	seen := append(s.tail, b[:n]...)
	if i := bytes.Index(seen, mark); i >= 0 {
		rest := bytes.Clone(seen[i+len(mark):])
		for len(rest) < wire.NonceBytes {
			if n, err = s.readRaw(b); err != nil {
				return 0, err
			}
			rest = append(rest, b[:n]...)
		}
		return 0, &reopened{
			answer: append(bytes.Clone(mark), rest[:wire.NonceBytes]...), rest: append(rest[wire.NonceBytes:], s.rest...),
		}
	}
	s.tail = bytes.Clone(seen[max(0, len(seen)-len(mark)+1):])
	return n, err
}

func (s *stream) readRaw(b []byte) (int, error) {
	if len(s.rest) == 0 {
		return s.in.Read(b)
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// reopened is what a read ends with when the mark came: what the host waits for
// now, and what came behind it, which belongs to the next connection.
type reopened struct{ answer, rest []byte }

func (r *reopened) Error() string { return "the host has opened the port again" }

func (s *stream) write(b []byte, fd int) error {
	if fd >= 0 {
		return errors.ErrUnsupported
	}
	_, err := s.out.Write(b)
	return err
}

func (s *stream) shut() {
	now := time.Unix(1, 0)
	_ = s.in.SetReadDeadline(now)
	_ = s.out.SetWriteDeadline(now)
}

func (s *stream) close() {
	if !s.keep {
		s.in.Close()
		s.out.Close()
	}
}
