package guestconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
)

// Files are those of the sandbox. It implements [isolation.Files],
// [isolation.Directories] and [isolation.Watcher].
type Files struct {
	Conn *Conn
	User string // whose rights they are used with; empty: the sandbox's default
	// Users: others may be asked for. The guest does what they ask for with their rights,
	// but not behind Landlock, as their programs are: so not where it forbids more.
	Users bool
}

// As returns the files as another user can reach them; nil: nobody may ask for that.
func (f *Files) As(user string) proc.Files {
	if !f.Users {
		return nil
	}
	return &Files{Conn: f.Conn, User: user, Users: true}
}

// fileOp is an operation under way.
type fileOp struct {
	c      *Conn
	stream uint32
	out    *Output
	answer chan struct{} // closed when err and entry are set

	mu     sync.Mutex
	change *sync.Cond
	credit int // of content that is sent
	over   bool
	told   bool // the guest has answered
	err    error
	entry  wire.FileEntry
}

func (f *Files) begin(m *wire.FileMessage) (*fileOp, error) {
	if err := checkName(m.Name); err != nil {
		return nil, err
	}
	if m.Op == wire.FileRename {
		if err := checkName(m.Target); err != nil {
			return nil, err
		}
	}
	m.User = f.User
	o := &fileOp{c: f.Conn, answer: make(chan struct{}), credit: wire.InitialWindow}
	o.change = sync.NewCond(&o.mu)
	o.out = newOutput(wire.Stdout, &o.c.still, func(kind wire.Type, body []byte) error { return o.c.send(kind, o.stream, body) })
	return o, f.Conn.begin(o, func(n uint32) { o.stream = n }, wire.File, m.Append(nil))
}

// maxName is PATH_MAX of Linux with its final zero.
const maxName = 4096

func checkName(name string) error {
	if !path.IsAbs(name) || len(name) >= maxName || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%.80q is not an absolute path: %w", name, isolation.ErrInvalidArgument)
	}
	return nil
}

// frame implements talker.
func (o *fileOp) frame(f wire.Frame) error {
	switch f.Type {
	case wire.Stdout:
		return o.out.put(f.Body)
	case wire.Window:
		var m wire.WindowMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if m.Of != wire.Stdin || m.Bytes > uint64(wire.InitialWindow-o.credit) {
			return fmt.Errorf("%w: WINDOW of %d bytes for %s, with %d", wire.ErrProtocol, m.Bytes, m.Of, o.credit)
		}
		o.credit += int(m.Bytes)
		o.change.Broadcast()
	case wire.File:
		var e wire.FileEntry
		if err := e.Parse(f.Body); err != nil {
			return err
		}
		o.mu.Lock()
		again := o.told
		o.told = true
		o.mu.Unlock()
		if again {
			return fmt.Errorf("%w: a second FILE", wire.ErrProtocol)
		}
		o.end(nil, e) // which does nothing if the caller has stopped meanwhile
	case wire.Fail:
		o.end(Failure(f.Body), wire.FileEntry{})
		o.out.hangUp()
	default:
		return fmt.Errorf("%w: a guest does not send %s for a file", wire.ErrProtocol, f.Type)
	}
	return nil
}

func (o *fileOp) lost(err error) {
	o.end(fmt.Errorf("%w (%w)", err, isolation.ErrUnavailable), wire.FileEntry{})
	o.out.hangUp()
}

func (o *fileOp) isOver() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.over
}

func (o *fileOp) end(err error, e wire.FileEntry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		if o.err == nil {
			o.err = err
		}
		return
	}
	o.over, o.err, o.entry = true, err, e
	close(o.answer)
	o.change.Broadcast()
	go o.c.wake()
}

// stop ends the operation. Unless it has its answer, this is the answer.
func (o *fileOp) stop(err error) {
	if !o.isOver() {
		o.kill()
	}
	o.end(err, wire.FileEntry{})
	o.c.forget(o.stream)
	o.out.hangUp()
}

func (o *fileOp) kill() {
	m := wire.KillMessage{Signal: 9}
	_ = o.c.send(wire.Kill, o.stream, m.Append(nil)) // a guest that is gone has ended it
}

// bound stops the operation when ctx ends, until the function that it returns is
// called.
func (o *fileOp) bound(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { o.stop(ctx.Err()) })
}

var errStopped = errors.New("the file is closed")

// wait waits for the answer.
func (o *fileOp) wait() (wire.FileEntry, error) {
	<-o.answer
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.entry, o.err
}

// do does an operation that has only an answer.
func (f *Files) do(ctx context.Context, m *wire.FileMessage) (wire.FileEntry, error) {
	o, err := f.begin(m)
	if err != nil {
		return wire.FileEntry{}, err
	}
	defer o.stop(errStopped)
	defer o.bound(ctx)()
	return o.wait()
}

// maxBase is NAME_MAX of Linux.
const maxBase = 255

// info is an entry as the contract has it. The guest is not believed: a name
// is one element, whatever it says.
func info(e *wire.FileEntry) isolation.FileInfo {
	name := e.Name
	if strings.ContainsAny(name, "/\x00") || name == "" || name == "." || name == ".." || len(name) > maxBase {
		name = "?"
	}
	return isolation.FileInfo{
		Base: name, Bytes: int64(min(e.Size, 1<<62)), Bits: mode(e.Mode), Modified: time.Unix(0, int64(min(e.Time, 1<<62))),
		UID: int64(uint32(e.UID)), GID: int64(uint32(e.GID)), Link: e.Link,
	}
}

// mode is st_mode (inode(7)) as package fs has it.
func mode(st uint64) fs.FileMode {
	m := fs.FileMode(st & 0o777)
	switch st & 0o170000 {
	case 0o040000:
		m |= fs.ModeDir
	case 0o120000:
		m |= fs.ModeSymlink
	case 0o010000:
		m |= fs.ModeNamedPipe
	case 0o140000:
		m |= fs.ModeSocket
	case 0o020000:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case 0o060000:
		m |= fs.ModeDevice
	case 0o100000:
	default:
		m |= fs.ModeIrregular
	}
	for bit, v := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if st&bit != 0 {
			m |= v
		}
	}
	return m
}

// Stat follows links.
func (f *Files) Stat(ctx context.Context, name string) (fs.FileInfo, error) {
	e, err := f.do(ctx, &wire.FileMessage{Op: wire.FileStat, Name: name})
	if err != nil {
		return nil, err
	}
	return info(&e), nil
}

// Space tells the size of the file system that a file is on, and how much of it is
// taken, in bytes. The guest is not believed to know more than it can.
func (f *Files) Space(ctx context.Context, name string) (used, total int64, err error) {
	e, err := f.do(ctx, &wire.FileMessage{Op: wire.FileSpace, Name: name})
	if err != nil {
		return 0, 0, err
	}
	all := min(e.Total, 1<<62)
	return int64(all - min(e.Free, all)), int64(all), nil
}

// ReadFile opens a regular file. Its content comes as it is read.
func (f *Files) ReadFile(ctx context.Context, name string) (io.ReadCloser, error) {
	o, err := f.begin(&wire.FileMessage{Op: wire.FileRead, Name: name})
	if err != nil {
		return nil, err
	}
	bound := o.bound(ctx)
	// The first bytes, or the answer, say whether it could be opened.
	if !o.out.await() {
		if _, err := o.wait(); err != nil {
			bound()
			o.stop(errStopped)
			return nil, err
		}
	}
	return &content{o, bound}, nil
}

// content is a file that is being read.
type content struct {
	o     *fileOp
	bound func() bool
}

func (c *content) Read(b []byte) (int, error) {
	n, err := c.o.out.Read(b)
	if err != io.EOF {
		return n, err
	}
	if _, err := c.o.wait(); err != nil { // the rest is lost
		return n, err
	}
	return n, io.EOF
}

func (c *content) Close() error {
	c.bound()
	c.o.stop(errStopped)
	return nil
}

// WriteFile makes a file, or puts another in its place, when all of it is there.
func (f *Files) WriteFile(ctx context.Context, name string, mode fs.FileMode, r io.Reader) error {
	o, err := f.begin(&wire.FileMessage{Op: wire.FileWrite, Name: name, Mode: uint64(mode.Perm())})
	if err != nil {
		return err
	}
	defer o.stop(errStopped)
	defer o.bound(ctx)()
	buf := make([]byte, 32<<10)
	for {
		n, rerr := r.Read(buf)
		if n > 0 && !o.write(buf[:n]) {
			break // it has its answer
		}
		if rerr == io.EOF {
			if err := o.c.send(wire.StdinEOF, o.stream, nil); err != nil {
				return err
			}
			break
		}
		if rerr != nil {
			return fmt.Errorf("read what is to be written to %s: %w", name, rerr)
		}
	}
	_, err = o.wait()
	return err
}

// write sends content, and reports whether more is wanted.
func (o *fileOp) write(b []byte) bool {
	for len(b) > 0 {
		o.mu.Lock()
		for o.credit == 0 && !o.over {
			o.change.Wait()
		}
		n := min(len(b), o.credit)
		o.credit -= n
		over := o.over
		o.mu.Unlock()
		if over || o.c.sendData(wire.Stdin, o.stream, b[:n], o.answer) != nil {
			return false
		}
		b = b[n:]
	}
	return true
}

// Remove removes a file or an empty directory.
func (f *Files) Remove(ctx context.Context, name string) error {
	_, err := f.do(ctx, &wire.FileMessage{Op: wire.FileRemove, Name: name})
	return err
}

// RemoveAll removes a file, or a directory with all in it.
func (f *Files) RemoveAll(ctx context.Context, name string) error {
	_, err := f.do(ctx, &wire.FileMessage{Op: wire.FileRemove, Name: name, All: true})
	return err
}

// Mkdir makes a directory and those above it; one that is there is well.
func (f *Files) Mkdir(ctx context.Context, name string, mode fs.FileMode) error {
	m := uint64(mode.Perm())
	if mode&fs.ModeSticky != 0 {
		m |= 0o1000
	}
	_, err := f.do(ctx, &wire.FileMessage{Op: wire.FileMkdir, Name: name, Mode: m, Parents: true})
	return err
}

// Rename moves a file or directory.
func (f *Files) Rename(ctx context.Context, from, to string) error {
	_, err := f.do(ctx, &wire.FileMessage{Op: wire.FileRename, Name: from, Target: to})
	return err
}

// What is read of a directory: bytes, and entries; both are more than a guest
// sends.
const (
	maxListing = 6 << 20
	maxEntries = 1 << 15
)

// ReadDir lists a directory.
func (f *Files) ReadDir(ctx context.Context, name string) ([]fs.FileInfo, error) {
	o, err := f.begin(&wire.FileMessage{Op: wire.FileList, Name: name})
	if err != nil {
		return nil, err
	}
	defer o.stop(errStopped)
	defer o.bound(ctx)()
	b, err := io.ReadAll(io.LimitReader(o.out, maxListing+1))
	if err == nil && len(b) > maxListing {
		err = fmt.Errorf("the list of %s is longer than %d bytes: %w", name, maxListing, isolation.ErrResourceExhausted)
	}
	if err != nil {
		return nil, err
	}
	answer, err := o.wait()
	if err != nil {
		return nil, err
	}
	var out []fs.FileInfo
	for {
		record, rest, ok, err := wire.CutRecord(b)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if len(out) == maxEntries {
			return nil, fmt.Errorf("the list of %s has more than %d entries: %w", name, maxEntries, isolation.ErrResourceExhausted)
		}
		var e wire.FileEntry
		if err := e.Parse(record); err != nil {
			return nil, err
		}
		out, b = append(out, info(&e)), rest
	}
	if answer.Dropped > 0 {
		return out, fmt.Errorf("%d entries of %s are not told: %w", answer.Dropped, name, isolation.ErrResourceExhausted)
	}
	return out, nil
}

// Watch tells what happens to a file, or in a directory, and with all also in
// those below it.
func (f *Files) Watch(ctx context.Context, name string, all bool) (<-chan isolation.FileEvent, error) {
	o, err := f.begin(&wire.FileMessage{Op: wire.FileWatch, Name: name, All: all})
	if err != nil {
		return nil, err
	}
	bound := o.bound(ctx)
	if _, err := o.wait(); err != nil {
		bound()
		o.stop(errStopped)
		return nil, err
	}
	bound()
	ch := make(chan isolation.FileEvent, 64)
	stop := context.AfterFunc(ctx, o.unwatch)
	go func() {
		defer close(ch)
		defer o.unwatch()
		defer stop()
		o.events(ctx, ch)
	}()
	return ch, nil
}

// unwatch ends a watch, whose answer was only that it began.
func (o *fileOp) unwatch() {
	o.kill()
	o.c.forget(o.stream)
	o.out.hangUp()
}

func (o *fileOp) events(ctx context.Context, ch chan<- isolation.FileEvent) {
	var b []byte
	buf := make([]byte, 16<<10)
	for {
		n, err := o.out.Read(buf)
		b = append(b, buf[:n]...)
		for {
			record, rest, ok, cerr := wire.CutRecord(b)
			if !ok || cerr != nil {
				if cerr != nil {
					return
				}
				break
			}
			var e wire.FileEvent
			if e.Parse(record) != nil {
				return
			}
			b = rest
			told, ok := event(&e)
			if !ok {
				return
			}
			select {
			case ch <- told:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// event is an event as the contract has it; ok is false if no file has its name.
func event(e *wire.FileEvent) (told isolation.FileEvent, ok bool) {
	has := func(bit uint64) bool { return e.Event&bit != 0 }
	told = isolation.FileEvent{
		Name: e.Name, Created: has(wire.EventCreate), Written: has(wire.EventWrite), Removed: has(wire.EventRemove), Changed: has(wire.EventMeta),
		Lost: has(wire.EventOverflow),
	}
	return told, told.Lost && e.Name == "" || checkName(e.Name) == nil && path.Clean(e.Name) == e.Name
}
