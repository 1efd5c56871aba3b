package server

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/axocoatl/isolation"
)

// firstFD is where a service manager passes sockets from; see sd_listen_fds(3).
const firstFD = 3

// Activated returns the sockets that a service manager has opened for this process,
// by sd_listen_fds(3), and takes that off the environment, so that no program that
// this one starts thinks them its own. There are none where nothing was passed.
func Activated() (list []net.Listener, err error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // a name without = or NUL always can be
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // those of another process
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 16 {
		return nil, fmt.Errorf("LISTEN_FDS is %.80q: want 0 to 16: %w", count, isolation.ErrInvalidArgument)
	}
	defer func() {
		if err != nil {
			for _, l := range list {
				l.Close()
			}
		}
	}()
	for fd := firstFD; fd < firstFD+n; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "socket "+strconv.Itoa(fd))
		l, err := listener(f)
		f.Close()
		if err != nil {
			return list, fmt.Errorf("socket %d of the service manager: %w", fd, err)
		}
		list = append(list, l)
	}
	return list, nil
}

// listener is a socket that listens, on this host alone.
func listener(f *os.File) (net.Listener, error) {
	if on, err := syscall.GetsockoptInt(int(f.Fd()), syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN); err != nil || on == 0 {
		return nil, fmt.Errorf("it does not listen for connections: %w", isolation.ErrInvalidArgument)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // its name is the service manager's
	} else if err := CheckListen(l.Addr().String()); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
