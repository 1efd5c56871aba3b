package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/spawn"
)

// Main serves the connection that the program inherited until it ends, which
// ends the container.
func Main() error {
	for fd := plan.SocketFD; fd <= plan.PlanFD; fd++ {
		unix.CloseOnExec(fd)
	}
	c, err := newConn(plan.SocketFD)
	if err != nil {
		return err
	}
	g := &guest{conn: c, live: map[uint32]*program{}}
	if err := g.setUp(); err != nil {
		m := wire.FailMessage{Message: err.Error()}
		return errors.Join(err, c.send(wire.Fail, 0, m.Append(nil), -1))
	}
	hello := wire.HelloMessage{Version: wire.Version, Role: "guest", Notes: g.notes}
	if err := c.send(wire.Hello, 0, hello.Append(nil), -1); err != nil {
		return err
	}
	return g.serve()
}

type guest struct {
	conn    *conn
	plan    plan.Plan
	notes   []string // what the host does not allow, for Features
	spawner spawn.Spawner
	tasks   []*os.File

	ready preparedSlot

	mu   sync.Mutex
	live map[uint32]*program // by stream
}

func (g *guest) setUp() error {
	f := os.NewFile(plan.PlanFD, "plan")
	err := json.NewDecoder(f).Decode(&g.plan)
	f.Close()
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	if g.plan.Process.KeepGroups {
		// Programs have it from the guest: without a root in its user namespace,
		// the files of what cannot be read belong to nobody here.
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(g.plan.Process.OOMScoreAdj)), 0); err != nil {
			return err
		}
	}
	// Nobody but the host reads this process's memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	for _, fd := range g.plan.Tasks {
		unix.CloseOnExec(fd)
		g.tasks = append(g.tasks, os.NewFile(uintptr(fd), "tasks"))
	}
	for _, fd := range g.plan.Held {
		unix.CloseOnExec(fd)
	}
	build := g.makeRoot
	if g.plan.Made {
		build = g.enterRoot
	}
	init, err := build()
	if err != nil {
		return err
	}
	defer init.Close()
	if g.plan.Loopback {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
	}
	if err := g.confine(init); err != nil {
		return err
	}
	return g.keepCapabilities()
}

// kept is what starting and ending programs of other users takes, and files of
// theirs.
var kept = []uint{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL, unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_FOWNER}

// keepCapabilities drops what only the making of the container took, in all
// threads.
func (g *guest) keepCapabilities() error {
	header := [2]uint32{unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]struct{ effective, permitted, inheritable uint32 }
	for _, c := range kept {
		data[c/32].permitted |= 1 << (c % 32)
		data[c/32].effective |= 1 << (c % 32)
	}
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&data)
	if e != 0 {
		return os.NewSyscallError("capset", e)
	}
	return nil
}

func (g *guest) serve() error {
	for {
		f, err := g.conn.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch f.Type {
		case wire.Spawn:
			var m wire.SpawnMessage
			if err := m.Parse(f.Body); err != nil {
				return err
			}
			files, err := g.conn.take(3)
			if err != nil {
				return err
			}
			stream := f.Stream
			if err := g.start(stream, &m, files); err != nil {
				fail := failure(err)
				if err := g.conn.send(wire.Fail, stream, fail.Append(nil), -1); err != nil {
					return err
				}
			}
		case wire.Prepare:
			var m wire.PrepareMessage
			if err := m.Parse(f.Body); err != nil {
				return err
			}
			stream := f.Stream
			go func() {
				t, body := wire.Prepared, []byte(nil)
				if err := g.prepare(&m); err != nil {
					t, body = wire.Fail, failure(err).Append(nil)
				}
				_ = g.conn.send(t, stream, body, -1) // an error is seen by the reader as well
			}()
		case wire.Run:
			g.noted(f.Stream)
		case wire.Resize:
			var m wire.ResizeMessage
			if err := m.Parse(f.Body); err != nil {
				return err
			}
			g.resize(f.Stream, m)
		case wire.Ping:
			if err := g.conn.send(wire.Pong, f.Stream, f.Body, -1); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: a guest is not sent %s", wire.ErrProtocol, f.Type)
		}
	}
}

// conn is a connection on which frames come with descriptors.
type conn struct {
	*wire.Reader
	fd    int
	found []int // descriptors that came and were not taken yet

	wmu sync.Mutex
}

func newConn(fd int) (*conn, error) {
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return nil, fmt.Errorf("descriptor %d is not a socket: this program is started by the engine, not by hand: %w", fd, err)
	}
	c := &conn{fd: fd}
	c.Reader = wire.NewReader(c)
	return c, nil
}

// Read implements io.Reader. It keeps the descriptors.
func (c *conn) Read(b []byte) (int, error) {
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

// take returns the next n descriptors that came.
func (c *conn) take(n int) ([]*os.File, error) {
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

// send writes a frame, with a descriptor unless it is -1.
func (c *conn) send(t wire.Type, stream uint32, body []byte, fd int) error {
	b := wire.Append(nil, t, stream, body)
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
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
