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

// terminal is a pseudoterminal of the container (pty(7)), and the copying
// between it and the host's descriptors.
type terminal struct {
	master *os.File
	slave  *os.File
	in     *os.File // the host's; nil: not joined
	out    *os.File
	copied sync.WaitGroup
}

func (g *guest) newTerminal(m *wire.SpawnMessage, uid, gid uint32) (t *terminal, err error) {
	err = g.inside(func() error {
		t, err = openTerminal(m, uid, gid)
		return err
	})
	return t, err
}

func openTerminal(m *wire.SpawnMessage, uid, gid uint32) (*terminal, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	t := &terminal{master: os.NewFile(uintptr(fd), "ptmx")}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		// Not by os.OpenFile: the program's end must block.
		var slave int
		if slave, err = unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
			t.slave = os.NewFile(uintptr(slave), "pts")
		}
	}
	if err == nil {
		err = t.slave.Chown(int(uid), int(gid))
	}
	if err == nil {
		err = t.resize(m.Rows, m.Cols)
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return t, nil
}

func (t *terminal) theirs() []*os.File { return []*os.File{t.slave, t.slave, t.slave} }

// join begins the copying between the terminal and the host's descriptors.
func (t *terminal) join(files []*os.File) {
	t.slave.Close()
	t.in, t.out = files[0], files[1]
	files[2].Close() // a terminal has one output
	go func() { _, _ = io.Copy(t.master, t.in) }()
	t.copied.Go(func() { _, _ = io.Copy(t.out, t.master) })
}

// ended delivers what the program wrote last.
func (t *terminal) ended() {
	// Reading a terminal that nobody has open is EIO; one that somebody has
	// goes on, until the deadline.
	_ = t.master.SetReadDeadline(time.Now().Add(endGrace))
	t.copied.Wait()
	t.close()
}

func (t *terminal) close() {
	for _, f := range []*os.File{t.master, t.slave, t.in, t.out} {
		if f != nil {
			f.Close()
		}
	}
}

func (t *terminal) resize(rows, cols uint64) error {
	if rows == 0 && cols == 0 {
		return nil
	}
	if rows > 65535 || cols > 65535 {
		return &classError{classInvalid, errors.New("terminal size above 65535")}
	}
	rc, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(cols)})
	})
	return errors.Join(err, cerr)
}
