//go:build unix

package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// lockAlone takes a lock that one process can have.
func lockAlone(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("another daemon has the state directory %s: %w", filepath.Dir(path), isolation.ErrFailedPrecondition)
	} else if err != nil {
		f.Close()
		return nil, os.NewSyscallError("flock", err)
	}
	return func() { f.Close() }, nil
}

// listenPrivate makes a socket that its owner alone can connect to, from the
// first moment: it gets its name when it has its mode.
func listenPrivate(path string) (net.Listener, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".socket-") // 0700
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	tmp := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		_ = os.Remove(tmp)
		return nil, err
	}
	return &named{l, path}, nil
}

// named removes its name when it is closed.
type named struct {
	net.Listener
	path string
}

// Addr is where it can be found, which is not where it was made.
func (n *named) Addr() net.Addr { return &net.UnixAddr{Name: n.path, Net: "unix"} }

func (n *named) Close() error { return errors.Join(n.Listener.Close(), ignoreGone(os.Remove(n.path))) }

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
