package jail

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dial connects to a unix socket that the program has made in its directory. What
// it put there instead is not followed: a link could lead to a socket of the
// host's.
func (p *Process) Dial(ctx context.Context, name string) (net.Conn, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return nil, fmt.Errorf("socket %q: %w", name, os.ErrInvalid)
	}
	path := filepath.Join(p.dir, Work, name)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s is no socket", path)
	}
	// By the descriptor: paths of sockets are short (unix(7)).
	return new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}
