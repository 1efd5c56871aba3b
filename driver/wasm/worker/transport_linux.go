package worker

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// socket is the inherited end of a socket pair.
type socket struct {
	fd    int
	oob   []byte
	found []int
	plain bool // descriptors are not expected any more
	spin  time.Duration
}

// socketFD is where the host puts the worker's end.
const socketFD = 3

func newTransport() (transport, error) {
	unix.CloseOnExec(socketFD)
	if _, err := unix.GetsockoptInt(socketFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return nil, fmt.Errorf("descriptor %d is not a socket: this program is started by the engine, not by hand: %w", socketFD, err)
	}
	// 253 descriptors fit one message (SCM_MAX_FD, unix(7)).
	return &socket{fd: socketFD, oob: make([]byte, unix.CmsgSpace(4*253))}, nil
}

func (s *socket) Read(b []byte) (int, error) {
	for {
		n, err := s.read(b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (s *socket) read(b []byte) (int, error) {
	if s.plain {
		for begin := time.Now(); s.spin > 0 && time.Since(begin) < s.spin; {
			n, _, err := unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
			if err != unix.EAGAIN {
				return n, err
			}
		}
		return unix.Read(s.fd, b)
	}
	n, oobn, _, _, err := unix.Recvmsg(s.fd, b, s.oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || oobn == 0 {
		return n, err
	}
	messages, err := unix.ParseSocketControlMessage(s.oob[:oobn])
	if err != nil {
		return n, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return n, err
		}
		s.found = append(s.found, fds...)
	}
	return n, nil
}

func (s *socket) linger(d time.Duration) { s.spin = d }

func (s *socket) descriptors() []int {
	found := s.found
	s.found, s.plain, s.oob = nil, true, nil
	return found
}

func (s *socket) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		n, err := unix.Write(s.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return total, os.NewSyscallError("write", err)
		}
		total += n
		b = b[n:]
	}
	return total, nil
}

func (s *socket) readable(timeout time.Duration) bool {
	p := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(timeout)
	for {
		var ts *unix.Timespec
		if timeout >= 0 {
			t := unix.NsecToTimespec(max(0, int64(timeout)))
			ts = &t
		}
		n, err := unix.Ppoll(p, ts, nil)
		if err != unix.EINTR {
			return n > 0
		}
		if timeout > 0 {
			timeout = max(0, time.Until(deadline))
		}
	}
}
