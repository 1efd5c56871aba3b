package guestconn

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// Conn is a connection to a guest. It is safe for concurrent use.
type Conn struct {
	rw     io.ReadWriteCloser
	reader *wire.Reader
	hello  wire.HelloMessage

	mu   sync.Mutex
	last uint32
	live map[uint32]talker // nil: the connection has ended
	err  error             // why, before gone is closed
	gone chan struct{}     // closed when it has ended
	why  error             // this side has ended it

	unbegun atomic.Int32 // programs that nobody waits for, and that have not begun

	still atomic.Bool

	// Frames go through a queue: a guest that does not read holds up nobody but
	// who sends it data.
	qmu     sync.Mutex
	qchange *sync.Cond
	queue   []byte // whole frames
	qclosed bool
}

// maxQueue is what may wait for a guest. One that has so many answers and grants
// of credit to take and does not is given up; data waits for room well below it.
const (
	maxQueue  = 8 << 20
	dataQueue = 1 << 20
)

// talker is what a stream leads to. It is called by the reader and must not
// wait for anything.
type talker interface {
	frame(f wire.Frame) error
	lost(err error)
}

// Open reads the guest's HELLO and serves the connection, which is the
// caller's no more: on error it is closed. With a token, which is that of the
// last SYNC, the guest is told that the connection is a new one, and what comes
// before its answer is dropped: so is it with a serial port that was open before.
func Open(ctx context.Context, rw io.ReadWriteCloser, token []byte) (*Conn, error) {
	c := &Conn{rw: rw, live: map[uint32]talker{}, gone: make(chan struct{})}
	c.qchange = sync.NewCond(&c.qmu)
	stop := context.AfterFunc(ctx, func() { rw.Close() })
	err := c.open(token)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		rw.Close()
		return nil, fmt.Errorf("connect to the guest: %w", err)
	}
	go c.serve()
	go c.write()
	return c, nil
}

func (c *Conn) open(token []byte) error {
	var r io.Reader = c.rw
	if len(token) > 0 {
		// The answer to another connection before this one is not the answer.
		mark := make([]byte, len(token)+wire.NonceBytes)
		if _, err := rand.Read(mark[copy(mark, wire.Mark(token)):]); err != nil {
			return err
		}
		if _, err := c.rw.Write(mark); err != nil {
			return err
		}
		rest, err := skipTo(r, mark)
		if err != nil {
			return err
		}
		r = io.MultiReader(bytes.NewReader(rest), r)
	}
	c.reader = wire.NewReader(r)
	f, err := c.reader.Next()
	if err != nil {
		return err
	}
	switch f.Type {
	case wire.Hello:
		if err := c.hello.Parse(f.Body); err != nil {
			return err
		}
		if c.hello.Version != wire.Version || c.hello.Role != "guest" {
			return fmt.Errorf("%w: %.40q of protocol version %d, want \"guest\" of %d", wire.ErrProtocol, c.hello.Role, c.hello.Version, wire.Version)
		}
		return checkHello(&c.hello)
	case wire.Fail:
		return Failure(f.Body)
	}
	return fmt.Errorf("%w: first frame is %s", wire.ErrProtocol, f.Type)
}

// checkHello refuses what no guest says, and what cannot be of the programs that
// it tells of.
func checkHello(m *wire.HelloMessage) error {
	if len(m.Execs) > 0 || len(m.Notes) > maxNotes {
		return fmt.Errorf("%w: HELLO of a guest with %d processes of a worker and %d notes", wire.ErrProtocol, len(m.Execs), len(m.Notes))
	}
	seen := map[string]bool{}
	for i := range m.Processes {
		p := &m.Processes[i]
		if isolation.ValidateID(p.ID) != nil || seen[p.ID] || max(p.Stdin, p.Stdout, p.Stderr) > maxOffset ||
			p.StdoutHeld > p.Stdout || p.StderrHeld > p.Stderr {
			return fmt.Errorf("%w: HELLO with a program %.80q, %d bytes of input, output of %d from %d and %d from %d", wire.ErrProtocol,
				p.ID, p.Stdin, p.Stdout, p.StdoutHeld, p.Stderr, p.StderrHeld)
		}
		seen[p.ID] = true
	}
	return nil
}

// maxNotes is more than a guest has to say about itself.
const maxNotes = 64

// maxSkip bounds what is dropped before a token: what guest and VMM may have
// held.
const maxSkip = 8 << 20

// skipTo reads up to the mark, and returns what was read behind it.
func skipTo(r io.Reader, mark []byte) ([]byte, error) {
	var seen []byte
	buf := make([]byte, 32<<10)
	for total := 0; total < maxSkip; {
		n, err := r.Read(buf)
		total += n
		seen = append(seen, buf[:n]...)
		if i := bytes.Index(seen, mark); i >= 0 {
			return seen[i+len(mark):], nil
		}
		seen = append(seen[:0], seen[max(0, len(seen)-len(mark)+1):]...)
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %d bytes, and no answer to the token", wire.ErrProtocol, maxSkip)
}

// Hold says that the guest stands still, or that it goes on: while it does nothing it
// is not taken to have nothing more to say.
func (c *Conn) Hold(still bool) { c.still.Store(still) }

// Hello is what the guest said first.
func (c *Conn) Hello() *wire.HelloMessage { return &c.hello }

// Gone is closed when the connection has ended; Err then says why.
func (c *Conn) Gone() <-chan struct{} { return c.gone }

// Err is why the connection has ended.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Processes go on, where the guest can be connected to
// again.
func (c *Conn) Close() error {
	err := c.rw.Close()
	<-c.gone
	return err
}

// Failure is the error of a FAIL.
func Failure(body []byte) error {
	var m wire.FailMessage
	if err := m.Parse(body); err != nil {
		return err
	}
	for _, c := range isolation.Classes() {
		if c.Error() == m.Class {
			return fmt.Errorf("%s (%w)", Tame(m.Message, 1000), c)
		}
	}
	return errors.New(Tame(m.Message, 1000))
}

// Tame makes one line, which moves no cursor, of what a guest says for people.
func Tame(s string, most int) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s[:min(len(s), most)])
}

// giveUp ends the connection for a reason of this side's.
func (c *Conn) giveUp(why error) {
	c.mu.Lock()
	if c.why == nil {
		c.why = why
	}
	c.mu.Unlock()
	c.rw.Close() // the reader sees it
}

// serve reads frames until the connection ends.
func (c *Conn) serve() {
	err := c.frames()
	if errors.Is(err, io.EOF) {
		err = errors.New("the guest has closed the connection")
	}
	c.rw.Close()
	c.closeQueue()
	c.mu.Lock()
	if c.why != nil {
		err = c.why
	}
	c.err = err
	live := c.live
	c.live = nil
	c.mu.Unlock()
	close(c.gone)
	for _, t := range live {
		t.lost(err)
	}
}

func (c *Conn) frames() error {
	for {
		f, err := c.reader.Next()
		if err != nil {
			return err
		}
		c.mu.Lock()
		t := c.live[f.Stream]
		c.mu.Unlock()
		if t == nil {
			// A stream that this side gave up may still have something on its
			// way; one that was never opened may not.
			if f.Stream == 0 || !c.opened(f.Stream) {
				return fmt.Errorf("%w: %s for stream %d", wire.ErrProtocol, f.Type, f.Stream)
			}
			continue
		}
		if err := t.frame(f); err != nil {
			return err
		}
	}
}

func (c *Conn) opened(stream uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return stream <= c.last
}

// begin opens a stream with a request.
func (c *Conn) begin(t talker, setStream func(uint32), kind wire.Type, body []byte) error {
	if len(body) > wire.MaxBody {
		return fmt.Errorf("a request of %d bytes, at most %d are taken: %w", len(body), wire.MaxBody, isolation.ErrInvalidArgument)
	}
	// Streams are numbered in the order of their requests.
	c.qmu.Lock()
	defer c.qmu.Unlock()
	c.mu.Lock()
	if c.live == nil {
		defer c.mu.Unlock()
		return fmt.Errorf("%w (%w)", c.err, isolation.ErrFailedPrecondition)
	}
	c.last++
	stream := c.last
	c.live[stream] = t
	setStream(stream)
	c.mu.Unlock()
	if err := c.enqueueLocked(kind, stream, body); err != nil {
		c.forget(stream)
		return fmt.Errorf("%w (%w)", err, isolation.ErrFailedPrecondition)
	}
	return nil
}

func (c *Conn) forget(stream uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, stream)
}

// send has a frame written. It does not wait.
func (c *Conn) send(kind wire.Type, stream uint32, body []byte) error {
	c.qmu.Lock()
	defer c.qmu.Unlock()
	return c.enqueueLocked(kind, stream, body)
}

// sendData has data of a stream written. It waits for room until done is closed.
func (c *Conn) sendData(kind wire.Type, stream uint32, body []byte, done <-chan struct{}) error {
	c.qmu.Lock()
	defer c.qmu.Unlock()
	for len(c.queue) >= dataQueue && !c.qclosed {
		select {
		case <-done:
			return io.ErrClosedPipe
		default:
			c.qchange.Wait()
		}
	}
	return c.enqueueLocked(kind, stream, body)
}

// wake has who waits for room look at what it waits with.
func (c *Conn) wake() {
	c.qmu.Lock()
	defer c.qmu.Unlock()
	c.qchange.Broadcast()
}

func (c *Conn) enqueueLocked(kind wire.Type, stream uint32, body []byte) error {
	if c.qclosed {
		return net.ErrClosed
	}
	if len(c.queue) > 0 && len(c.queue)+len(body) > maxQueue {
		err := fmt.Errorf("the guest reads nothing, and %d bytes wait for it", len(c.queue))
		c.giveUp(err)
		return err
	}
	c.queue = wire.Append(c.queue, kind, stream, body)
	c.qchange.Broadcast()
	return nil
}

func (c *Conn) closeQueue() {
	c.qmu.Lock()
	defer c.qmu.Unlock()
	c.qclosed = true
	c.qchange.Broadcast()
}

// write writes what is queued until the connection ends.
func (c *Conn) write() {
	var spare []byte
	for {
		c.qmu.Lock()
		for len(c.queue) == 0 && !c.qclosed {
			c.qchange.Wait()
		}
		frames, closed := c.queue, c.qclosed
		c.queue = spare[:0]
		c.qchange.Broadcast()
		c.qmu.Unlock()
		if closed {
			return
		}
		if _, err := c.rw.Write(frames); err != nil {
			// A part of a frame may have gone: nothing can follow it.
			c.rw.Close()
			return
		}
		if spare = frames; cap(spare) > dataQueue {
			spare = nil
		}
	}
}

// request is a question with one answer.
type request struct {
	want   wire.Type
	answer chan answer
}

type answer struct {
	body []byte
	err  error
}

func (r *request) frame(f wire.Frame) error {
	switch f.Type {
	case r.want:
		r.done(answer{body: bytes.Clone(f.Body)})
	case wire.Fail:
		r.done(answer{err: Failure(f.Body)})
	default:
		return fmt.Errorf("%w: %s in answer to %s", wire.ErrProtocol, f.Type, r.want)
	}
	return nil
}

func (r *request) lost(err error) {
	r.done(answer{err: fmt.Errorf("%w (%w)", err, isolation.ErrUnavailable)})
}

// done gives the answer. A guest may send more than one; the first counts.
func (r *request) done(a answer) {
	select {
	case r.answer <- a:
	default:
	}
}

// ask sends a request and waits for its answer.
func (c *Conn) ask(ctx context.Context, kind, want wire.Type, body []byte) ([]byte, error) {
	r := &request{want: want, answer: make(chan answer, 1)}
	var stream uint32
	if err := c.begin(r, func(n uint32) { stream = n }, kind, body); err != nil {
		return nil, err
	}
	defer c.forget(stream)
	select {
	case a := <-r.answer:
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Ping waits until the guest has answered.
func (c *Conn) Ping(ctx context.Context) error {
	_, err := c.ask(ctx, wire.Ping, wire.Pong, nil)
	return err
}

// Sync makes a machine that was booted or restored unlike any other.
func (c *Conn) Sync(ctx context.Context, m *wire.SyncMessage) error {
	_, err := c.ask(ctx, wire.Sync, wire.Sync, m.Append(nil))
	return err
}

// Mount mounts a disk of a machine.
func (c *Conn) Mount(ctx context.Context, m *wire.MountMessage) error {
	_, err := c.ask(ctx, wire.Mount, wire.Mount, m.Append(nil))
	return err
}

// Power ends a machine, soon after the answer.
func (c *Conn) Power(ctx context.Context, reboot bool) error {
	m := wire.PowerMessage{Reboot: reboot}
	_, err := c.ask(ctx, wire.Power, wire.Power, m.Append(nil))
	return err
}

// Prepare starts an interpreter ahead, with what programs have in their
// environments anyway; see [isolation.Preparer].
func (c *Conn) Prepare(ctx context.Context, language string, env []string) error {
	m := wire.PrepareMessage{Language: language, Env: env}
	_, err := c.ask(ctx, wire.Prepare, wire.Prepared, m.Append(nil))
	return err
}
