package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
)

// conn is the host's end of the connection to a guest. What comes over it is
// hostile: the guest may have been taken over.
type conn struct {
	f *os.File
	// member reports whether a process belongs to the sandbox.
	member func(pid int) bool
	reader *wire.Reader
	found  []int // descriptors that came and were not taken yet; the reader's

	writing chan struct{} // holds one while a frame is written

	mu   sync.Mutex
	last uint32
	live map[uint32]*child
	err  error         // why it ended, before gone is closed
	gone chan struct{} // closed when it has ended

	pidfds map[uint32]*os.File // of programs that rest has, by stream; guarded by mu

	rest *guestconn.Conn // see files_linux.go
	pass *io.PipeWriter  // to it

	passing []byte // a frame for it; the reader's
}

func newConn(f *os.File) *conn {
	c := &conn{f: f, last: ownStreams, live: map[uint32]*child{}, pidfds: map[uint32]*os.File{}, gone: make(chan struct{}), writing: make(chan struct{}, 1)}
	c.reader = wire.NewReader(c)
	return c
}

// maxFound bounds the descriptors that a guest has sent and no frame has named.
const maxFound = 64

// Read implements io.Reader. It keeps the descriptors.
func (c *conn) Read(b []byte) (int, error) {
	rc, err := c.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	oob := make([]byte, unix.CmsgSpace(4*16)) // more are cut off and closed by the kernel
	var n, oobn int
	var rerr error
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, rerr = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
			if rerr != unix.EINTR {
				return rerr != unix.EAGAIN
			}
		}
	})
	switch {
	case err != nil:
		return 0, err
	case rerr != nil:
		return 0, os.NewSyscallError("recvmsg", rerr)
	case n == 0:
		return 0, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	for i := 0; err == nil && i < len(messages); i++ {
		if fds, rerr := unix.ParseUnixRights(&messages[i]); rerr == nil {
			c.found = append(c.found, fds...)
		}
	}
	if err == nil && len(c.found) > maxFound {
		err = fmt.Errorf("%w: %d descriptors that nobody asked for", wire.ErrProtocol, len(c.found))
	}
	return n, err
}

// take returns the next descriptor that came.
func (c *conn) take() (*os.File, error) {
	if len(c.found) == 0 {
		return nil, fmt.Errorf("%w: no descriptor came", wire.ErrProtocol)
	}
	fd := c.found[0]
	c.found = c.found[1:]
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// send writes a frame with descriptors. A guest that does not read is not waited
// for longer than the caller waits; if it has read a part of the frame, nothing
// can follow that, and the connection ends.
func (c *conn) send(ctx context.Context, frame []byte, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		rc, err := f.SyscallConn()
		if err == nil {
			err = rc.Control(func(fd uintptr) { fds[i] = int(fd) })
		}
		if err != nil {
			return err
		}
	}
	rc, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	hurried := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.f.SetWriteDeadline(time.Unix(1, 0))
		close(hurried)
	})
	whole := len(frame)
	defer func() {
		if !stop() {
			<-hurried
			_ = c.f.SetWriteDeadline(time.Time{}) // fails where it is closed
		}
	}()
	for len(frame) > 0 {
		var n int
		var serr error
		err = rc.Write(func(fd uintptr) bool {
			n, serr = unix.SendmsgN(int(fd), frame, rights, nil, unix.MSG_NOSIGNAL)
			return serr != unix.EAGAIN && serr != unix.EINTR
		})
		if err = errors.Join(err, serr); err != nil {
			if len(frame) < whole {
				c.f.Close() // the reader sees it
			}
			return errors.Join(ctx.Err(), err)
		}
		frame, rights = frame[n:], nil
	}
	return nil
}

// hello reads the guest's first frame.
func (c *conn) hello(ctx context.Context) (*wire.HelloMessage, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	f, err := c.reader.Next()
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	switch f.Type {
	case wire.Hello:
		m := new(wire.HelloMessage)
		if err := m.Parse(f.Body); err != nil {
			return nil, err
		}
		if m.Version != wire.Version || m.Role != "guest" {
			return nil, fmt.Errorf("%w: %q of protocol version %d, want \"guest\" of %d", wire.ErrProtocol, m.Role, m.Version, wire.Version)
		}
		return m, nil
	case wire.Fail:
		return nil, guestconn.Failure(f.Body)
	}
	return nil, fmt.Errorf("%w: first frame is %s", wire.ErrProtocol, f.Type)
}

// serve reads frames until the connection ends.
func (c *conn) serve() {
	err := c.frames()
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrClosed) {
		err = errors.New("the container's first process has ended")
	}
	for _, fd := range c.found {
		unix.Close(fd)
	}
	c.mu.Lock()
	c.err = err
	live := c.live
	c.live = nil
	for _, f := range c.pidfds {
		f.Close()
	}
	c.pidfds = nil
	c.mu.Unlock()
	close(c.gone)
	for _, ch := range live {
		ch.lost(err)
	}
	c.f.Close()
	c.pass.CloseWithError(err)
	<-c.rest.Gone()
}

func (c *conn) frames() error {
	for {
		f, err := c.reader.Next()
		if err != nil {
			return err
		}
		c.mu.Lock()
		ch := c.live[f.Stream]
		c.mu.Unlock()
		if ok, err := c.passed(f); err != nil {
			return err
		} else if ok {
			continue
		}
		if ch == nil {
			return fmt.Errorf("%w: %s for stream %d, which has no program", wire.ErrProtocol, f.Type, f.Stream)
		}
		// What breaks a rule leaves its program among those that are lost.
		switch f.Type {
		case wire.Spawned:
			pidfd, err := c.take()
			if err != nil {
				return err
			}
			if err := ch.spawned(pidfd, c.member); err != nil {
				return err
			}
			// Until now its number could not be given to another.
			if err := c.send(context.Background(), wire.Append(nil, wire.Run, f.Stream, nil), nil); err != nil {
				return err
			}
		case wire.Prepared:
			if err := ch.prepared(); err != nil {
				return err
			}
			c.forget(ch)
		case wire.Fail:
			if err := ch.failed(guestconn.Failure(f.Body)); err != nil {
				return err
			}
			c.forget(ch)
		case wire.Exit:
			var m wire.ExitMessage
			if err := m.Parse(f.Body); err != nil {
				return err
			}
			if err := ch.exited(&m); err != nil {
				return err
			}
			c.forget(ch)
		default:
			return fmt.Errorf("%w: a guest does not send %s", wire.ErrProtocol, f.Type)
		}
	}
}

// idlePatience is how long the end of killed programs may take to be told.
const idlePatience = time.Second

// idle waits until no program runs, and reports whether none does.
func (c *conn) idle(ctx context.Context) bool {
	for begin, wait := time.Now(), time.Millisecond/4; ; wait = min(2*wait, 10*time.Millisecond) {
		c.mu.Lock()
		n := len(c.live)
		c.mu.Unlock()
		if n == 0 || ctx.Err() != nil || time.Since(begin) > idlePatience {
			return n == 0
		}
		time.Sleep(wait)
	}
}

func (c *conn) forget(ch *child) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, ch.stream)
}

// spawn starts a program. The files are the caller's still.
func (c *conn) spawn(ctx context.Context, m *wire.SpawnMessage, files []*os.File) (*child, error) {
	return c.ask(ctx, wire.Spawn, m.Append(nil), files)
}

// prepare starts an interpreter ahead.
func (c *conn) prepare(ctx context.Context, language string, env []string) error {
	m := wire.PrepareMessage{Language: language, Env: env}
	_, err := c.ask(ctx, wire.Prepare, m.Append(nil), nil)
	return err
}

// ask sends a request on a stream of its own and waits until it is answered.
func (c *conn) ask(ctx context.Context, t wire.Type, body []byte, files []*os.File) (*child, error) {
	ch := &child{conn: c, begun: make(chan struct{}), done: make(chan struct{}), prepares: t == wire.Prepare}
	c.mu.Lock()
	if c.live == nil {
		defer c.mu.Unlock()
		return nil, fmt.Errorf("%w (%w)", c.err, isolation.ErrFailedPrecondition)
	}
	c.last++
	ch.stream = c.last
	c.live[ch.stream] = ch
	c.mu.Unlock()
	if err := c.send(ctx, wire.Append(nil, t, ch.stream, body), files); err != nil {
		// The reader sees why; nothing was started if the frame is not whole.
		c.forget(ch)
		return nil, fmt.Errorf("%w (%w)", err, isolation.ErrFailedPrecondition)
	}
	select {
	case <-ch.begun:
	case <-ctx.Done():
		// It may be starting: then it is ended as soon as it has begun.
		ch.abandon()
		return nil, ctx.Err()
	}
	if ch.err != nil {
		return nil, ch.err
	}
	return ch, nil
}

// child is a program in the container. It implements proc.Child.
type child struct {
	conn     *conn
	stream   uint32
	prepares bool          // it asks for an interpreter, not for a program
	begun    chan struct{} // closed when it runs, or could not be started: err
	done     chan struct{} // closed when it has ended

	mu        sync.Mutex
	abandoned bool
	pidfd     *os.File
	pid       int
	err       error // before begun: why it does not run; after: why its end is not known
	exit      wire.ExitMessage
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func (ch *child) spawned(pidfd *os.File, member func(int) bool) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.prepares || isClosed(ch.begun) {
		pidfd.Close()
		return fmt.Errorf("%w: SPAWNED that nobody asked for", wire.ErrProtocol)
	}
	pid, err := pidOf(pidfd)
	if err == nil && (pid == 0 || pid > 0 && !member(pid)) { // 0 is one that is not below this process's namespace
		err = fmt.Errorf("%w: a descriptor of process %d, which is none of the sandbox", wire.ErrProtocol, pid)
	}
	if err != nil {
		pidfd.Close()
		return err
	}
	ch.pid, ch.pidfd = pid, pidfd
	if ch.abandoned {
		_ = ch.signalLocked(unix.SIGKILL)
	}
	close(ch.begun)
	return nil
}

// prepared ends the wait for an interpreter.
func (ch *child) prepared() error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if !ch.prepares || isClosed(ch.begun) {
		return fmt.Errorf("%w: PREPARED that nobody asked for", wire.ErrProtocol)
	}
	close(ch.begun)
	close(ch.done)
	return nil
}

// failed ends a program that could not be started.
func (ch *child) failed(err error) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if isClosed(ch.begun) {
		return fmt.Errorf("%w: FAIL after SPAWNED", wire.ErrProtocol)
	}
	ch.err = err
	close(ch.begun)
	close(ch.done)
	return nil
}

func (ch *child) exited(m *wire.ExitMessage) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if !isClosed(ch.begun) {
		return fmt.Errorf("%w: EXIT before SPAWNED", wire.ErrProtocol)
	}
	ch.exit = *m
	ch.closeLocked()
	return nil
}

// lost ends a program whose end nobody will tell.
func (ch *child) lost(err error) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.err = err
	if !isClosed(ch.begun) {
		ch.err = fmt.Errorf("%w (%w)", err, isolation.ErrFailedPrecondition)
		close(ch.begun)
	}
	ch.closeLocked()
}

func (ch *child) closeLocked() {
	if ch.pidfd != nil {
		ch.pidfd.Close()
		ch.pidfd = nil
	}
	close(ch.done)
}

func (ch *child) abandon() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.abandoned = true
	_ = ch.signalLocked(unix.SIGKILL)
}

func (ch *child) PID() int { return ch.pid }

func (ch *child) Signal(sig unix.Signal) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.signalLocked(sig)
}

func (ch *child) signalLocked(sig unix.Signal) error {
	if ch.pidfd == nil {
		return nil
	}
	rc, err := ch.pidfd.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // it is closed: the program has ended
	}
	var serr error
	cerr := rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(cerr, serr)
}

func (ch *child) Wait() (proc.ChildStatus, error) {
	<-ch.done
	ch.mu.Lock()
	defer ch.mu.Unlock()
	m := &ch.exit
	switch {
	case ch.err != nil:
		return proc.ChildStatus{}, ch.err
	case m.Cause == wire.CauseExited && m.Code <= 255:
		return status(m, int(m.Code), 0), nil
	case m.Cause == wire.CauseSignaled && m.Signal >= 1 && m.Signal <= 64:
		return status(m, 0, unix.Signal(m.Signal)), nil
	}
	return proc.ChildStatus{}, fmt.Errorf("the container says that it ended with cause %d, status %d, signal %d: %s", m.Cause, m.Code, m.Signal, guestconn.Tame(m.Detail, 200))
}

func status(m *wire.ExitMessage, code int, sig unix.Signal) proc.ChildStatus {
	return proc.ChildStatus{
		Code: code, Signal: sig, CPU: time.Duration(min(m.CPU, 1<<62)), Peak: int64(min(m.PeakMemory, 1<<62)),
		Read: int64(min(m.ReadBytes, 1<<62)), Written: int64(min(m.WrittenBytes, 1<<62)), DiskHits: int64(min(m.DiskHits, 1<<62)),
	}
}

// pidOf returns the process of a pidfd as this process sees it; -1 if it has
// ended (pidfd_open(2)). Any other descriptor is an error.
func pidOf(pidfd *os.File) (int, error) {
	rc, err := pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	if err := rc.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(n))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("Pid:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(v)))
		}
	}
	return 0, fmt.Errorf("%w: the descriptor that came is no pidfd", wire.ErrProtocol)
}
