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

// input is what the host sends to a program that has not taken it yet. The
// credit bounds it.
type input struct {
	to *os.File // nil: the program has no input

	mu     sync.Mutex
	change *sync.Cond
	buf    []byte
	total  uint64 // came by now
	given  uint64 // was taken, and its credit not given back
	eof    bool   // no more comes
	closed bool   // nothing is taken any more
}

func newInput(to *os.File) *input {
	i := &input{to: to, eof: to == nil, closed: to == nil}
	i.change = sync.NewCond(&i.mu)
	return i
}

func (i *input) came() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.total
}

// taken is what was taken since it was asked last.
func (i *input) taken() uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.given
	i.given = 0
	return n
}

// credit is what came, what may come now, and whether nothing may.
func (i *input) credit() (came, credit uint64, end bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.given = 0
	return i.total, uint64(wire.InitialWindow - len(i.buf)), i.eof || i.closed
}

func (i *input) put(b []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case len(i.buf)+len(b) > wire.InitialWindow:
		return fmt.Errorf("%w: %d bytes of input, with %d on their way: more than the credit", wire.ErrProtocol, len(b), len(i.buf))
	case i.closed:
		return nil
	case i.eof:
		return fmt.Errorf("%w: input after its end", wire.ErrProtocol)
	}
	i.buf = append(i.buf, b...)
	i.total += uint64(len(b))
	i.change.Broadcast()
	return nil
}

func (i *input) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.eof = true
	i.change.Broadcast()
}

// close wakes the feeder, also from a write.
func (i *input) close() {
	i.mu.Lock()
	i.closed = true
	i.buf = nil
	i.change.Broadcast()
	i.mu.Unlock()
	if i.to != nil {
		_ = i.to.SetWriteDeadline(time.Unix(1, 0)) // a terminal is read from still
	}
}

// feed gives the program what comes, and tells that it took some.
func (i *input) feed(took func()) {
	if i.to == nil {
		return
	}
	defer i.finish()
	for {
		i.mu.Lock()
		for len(i.buf) == 0 && !i.eof && !i.closed {
			i.change.Wait()
		}
		b := i.buf[:min(len(i.buf), 32<<10)]
		closed := i.closed
		i.mu.Unlock()
		if closed || len(b) == 0 {
			return
		}
		n, err := i.to.Write(b)
		i.mu.Lock()
		if !i.closed {
			i.buf = i.buf[n:]
			i.given += uint64(n)
		}
		if err != nil {
			// It reads no more. What still comes is dropped, within the credit.
			i.closed, i.buf = true, nil
		}
		i.mu.Unlock()
		if err != nil {
			return
		}
		took()
	}
}

// finish ends a pipe. A terminal is closed with the output that it is, too.
func (i *input) finish() {
	if _, err := i.to.Stat(); err == nil && !isTerminal(i.to) {
		i.to.Close()
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetInt(fdOf(f), unix.TIOCGPTN)
	return err == nil
}

// output is what a program writes, on its way to the host: held until it is
// acknowledged, and some of it longer.
type output struct {
	t   wire.Type
	src *os.File // nil: none, it is over from the start

	sending sync.Mutex // held by who sends, across the sending

	mu       sync.Mutex
	room     *sync.Cond
	hold     hold
	acked    uint64 // the host has what is before
	sent     uint64
	over     bool // no more comes
	overSent bool
	dropping bool  // nobody wants it
	l        *link // nil: nobody is attached
	stream   uint32
}

func newOutput(t wire.Type, src *os.File) *output {
	o := &output{t: t, src: src, over: src == nil}
	o.room = sync.NewCond(&o.mu)
	return o
}

// held is what there is: from where, and to where.
func (o *output) held() (base, end uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.hold.base, o.hold.end
}

// pin has what is held from an offset on, or all of it, stay until it is
// acknowledged again.
func (o *output) pin(from *uint64, all bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case all:
		*from = o.hold.base
	case *from < o.hold.base:
		return &classError{classFailed, fmt.Errorf("%s offset %d: held from %d on", o.t, *from, o.hold.base)}
	case *from > o.hold.end:
		return &classError{classInvalid, fmt.Errorf("%s offset %d: %d bytes were written", o.t, *from, o.hold.end)}
	}
	// More than what is held is not written without an acknowledgement.
	o.acked = *from
	return nil
}

func (o *output) attach(l *link, stream uint32, from uint64) {
	o.mu.Lock()
	o.l, o.stream, o.acked, o.sent, o.overSent = l, stream, from, from, false
	o.room.Broadcast()
	o.mu.Unlock()
	go o.flush()
}

func (o *output) detach(l *link) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.l == l {
		o.l = nil
	}
}

// ack takes a WINDOW.
func (o *output) ack(n uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent-o.acked < n {
		return fmt.Errorf("%w: %d bytes of %s acknowledged, %d were sent", wire.ErrProtocol, n, o.t, o.sent-o.acked)
	}
	o.acked += n
	o.room.Broadcast()
	return nil
}

// drop says that nobody wants more.
func (o *output) drop() {
	o.mu.Lock()
	o.dropping = true
	o.l = nil
	o.hold = hold{base: o.hold.end, end: o.hold.end}
	o.room.Broadcast()
	o.mu.Unlock()
}

// flush sends what is not sent. Credit is what is held: it never runs out.
func (o *output) flush() {
	o.sending.Lock()
	defer o.sending.Unlock()
	for {
		o.mu.Lock()
		part := o.hold.at(o.sent, min(o.hold.end, o.sent+wire.MaxData/2))
		if o.l == nil || len(part) == 0 && (!o.over || o.overSent || o.sent != o.hold.end) {
			o.mu.Unlock()
			return
		}
		o.overSent = len(part) == 0
		l, frame := o.l, wire.Append(nil, o.t, o.stream, part)
		o.sent += uint64(len(part))
		o.mu.Unlock()
		if l.write(frame, -1) != nil {
			o.detach(l)
		}
	}
}

// wait waits for room, and returns how much there is.
func (o *output) wait() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.dropping && o.hold.end-o.acked >= holdBytes {
		o.room.Wait()
	}
	if o.dropping {
		return holdBytes
	}
	return int(holdBytes - (o.hold.end - o.acked))
}

// put holds b and sends it.
func (o *output) put(b []byte) {
	o.mu.Lock()
	// Who attached meanwhile may have taken room away.
	for !o.dropping && o.hold.end-o.acked+uint64(len(b)) > holdBytes {
		o.room.Wait()
	}
	if o.dropping {
		o.mu.Unlock()
		return
	}
	o.hold.append(b)
	o.mu.Unlock()
	o.flush()
}

func (o *output) isOver() {
	o.mu.Lock()
	o.over = true
	o.mu.Unlock()
	o.flush()
}

// pump takes what the program writes until nobody can write any more. Once the
// program has ended and had its grace, it takes what is there, says that this
// was all, and then drops what background programs write: a pipe that was closed
// would end them.
func (o *output) pump() {
	if o.src == nil {
		return
	}
	defer o.src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := o.src.Read(buf[:min(o.wait(), len(buf))])
		o.put(buf[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil { // end of file, or EIO of a terminal that nobody has
			o.isOver()
			return
		}
	}
	o.sweep(buf)
	o.isOver()
	if o.src.SetReadDeadline(time.Time{}) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, struct{ io.Reader }{o.src})
}

// maxSweep is what a pipe holds at most by default (pipe(7)), so that one who
// writes on does not keep the sweep going.
const maxSweep = 64 << 10

func (o *output) sweep(buf []byte) {
	for left := maxSweep; left > 0; {
		n := 0
		var err error
		rc, cerr := o.src.SyscallConn()
		if cerr != nil {
			return
		}
		size := min(o.wait(), len(buf), left)
		// The runtime refuses to read after a deadline; the pipe does not.
		cerr = rc.Control(func(fd uintptr) {
			for {
				if n, err = unix.Read(int(fd), buf[:size]); err != unix.EINTR {
					return
				}
			}
		})
		if cerr != nil || err != nil || n <= 0 {
			return
		}
		o.put(buf[:n])
		left -= n
	}
}

// finish ends the wait for background programs.
func (o *output) finish() {
	if o.src != nil {
		_ = o.src.SetReadDeadline(time.Unix(1, 0))
	}
}
