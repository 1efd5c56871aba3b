package guestconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// Process is a program in a sandbox.
type Process struct {
	c      *Conn
	stream uint32
	id     string

	attached bool // not started by this connection

	// Stdout and Stderr must be read, or closed: what is not taken stops the
	// program.
	Stdout, Stderr *Output

	begun chan struct{} // closed when it runs, or could not be started
	done  chan struct{} // closed when it has ended, or the connection has

	mu        sync.Mutex
	change    *sync.Cond // of credit and exit
	err       error      // before begun: why it does not run; after: why its end is not known
	abandoned bool
	said      wire.SpawnedMessage
	credit    uint64 // of standard input
	eof       bool   // no more input goes
	exit      *wire.ExitMessage
	asked     []chan wire.UsageMessage
	ackSent   bool
}

func (c *Conn) newProcess(id string) *Process {
	p := &Process{c: c, id: id, begun: make(chan struct{}), done: make(chan struct{})}
	p.change = sync.NewCond(&p.mu)
	send := func(kind wire.Type, body []byte) error { return c.send(kind, p.stream, body) }
	p.Stdout, p.Stderr = newOutput(wire.Stdout, &c.still, send), newOutput(wire.Stderr, &c.still, send)
	return p
}

// Exec starts a program. m.ID is new in the sandbox.
func (c *Conn) Exec(ctx context.Context, m *wire.ExecMessage) (*Process, error) {
	p := c.newProcess(m.ID)
	p.eof = m.NoStdin
	return p, p.start(ctx, wire.Exec, m.Append(nil))
}

// Attach finds a program again, of those in HELLO. Its output comes from the
// offsets on.
func (c *Conn) Attach(ctx context.Context, m *wire.AttachMessage) (*Process, error) {
	p := c.newProcess(m.ID)
	p.attached = true
	return p, p.start(ctx, wire.Attach, m.Append(nil))
}

func (p *Process) start(ctx context.Context, kind wire.Type, body []byte) error {
	if err := p.c.begin(p, func(n uint32) { p.stream = n }, kind, body); err != nil {
		return err
	}
	select {
	case <-p.begun:
	case <-ctx.Done():
		p.mu.Lock()
		p.abandoned = true // it is ended as soon as it has begun
		begun, waits := isClosed(p.begun) && p.err == nil, !isClosed(p.begun)
		p.mu.Unlock()
		if waits && p.c.unbegun.Add(1) > maxUnbegun {
			p.c.giveUp(fmt.Errorf("%w: %d programs", errUnanswered, maxUnbegun))
		}
		if begun && kind == wire.Exec {
			go p.kill(9, true)
			go p.forgetEnd()
		}
		return ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// ID is the program's.
func (p *Process) ID() string { return p.id }

// PID is the program's in the guest's pid namespace.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(min(p.said.PID, 1<<31-1))
}

// StdinOffset is how many bytes of input the program's side had when this connection
// found it.
func (p *Process) StdinOffset() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Stdin
}

// StdinEnded reports whether no more input is taken.
func (p *Process) StdinEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.eof
}

// From are the offsets at which the outputs begin on this connection.
func (p *Process) From() (stdout, stderr int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(p.said.Stdout), int64(p.said.Stderr)
}

// Stream is the number of the program's stream.
func (p *Process) Stream() uint32 { return p.stream }

// frame implements talker.
func (p *Process) frame(f wire.Frame) error {
	if f.Type != wire.Spawned && f.Type != wire.Fail && !isClosed(p.begun) {
		return fmt.Errorf("%w: %s before SPAWNED", wire.ErrProtocol, f.Type)
	}
	switch f.Type {
	case wire.Spawned:
		return p.spawned(f.Body)
	case wire.Fail:
		if isClosed(p.begun) {
			return fmt.Errorf("%w: FAIL after SPAWNED", wire.ErrProtocol)
		}
		p.c.forget(p.stream)
		p.end(Failure(f.Body), nil)
	case wire.Stdout:
		return p.Stdout.put(f.Body)
	case wire.Stderr:
		return p.Stderr.put(f.Body)
	case wire.Window:
		var m wire.WindowMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if m.Of != wire.Stdin || m.Bytes > wire.InitialWindow-p.credit {
			return fmt.Errorf("%w: WINDOW of %d bytes for %s, with %d", wire.ErrProtocol, m.Bytes, m.Of, p.credit)
		}
		p.credit += m.Bytes
		p.change.Broadcast()
	case wire.Usage:
		return p.answered(f.Body)
	case wire.Exit:
		m := new(wire.ExitMessage)
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		if isClosed(p.done) {
			return fmt.Errorf("%w: a second EXIT", wire.ErrProtocol)
		}
		p.end(nil, m)
		if p.wasAbandoned() {
			p.Forget()
		}
	default:
		return fmt.Errorf("%w: a guest does not send %s for a process", wire.ErrProtocol, f.Type)
	}
	return nil
}

func (p *Process) spawned(body []byte) error {
	var m wire.SpawnedMessage
	if err := m.Parse(body); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if isClosed(p.begun) || m.StdinCredit > wire.InitialWindow {
		return fmt.Errorf("%w: SPAWNED with credit %d", wire.ErrProtocol, m.StdinCredit)
	}
	if max(m.Stdin, m.Stdout, m.Stderr) > maxOffset || max(m.Stdin, m.Stdout, m.Stderr) > 0 && !p.attached {
		return fmt.Errorf("%w: SPAWNED with %d bytes of input, output from %d and %d on", wire.ErrProtocol, m.Stdin, m.Stdout, m.Stderr)
	}
	if p.abandoned {
		p.c.unbegun.Add(-1)
	}
	p.said, p.credit = m, m.StdinCredit
	p.eof = p.eof || m.StdinEnd
	if p.abandoned {
		go p.kill(9, true)
		go p.forgetEnd()
	}
	close(p.begun)
	return nil
}

func (p *Process) wasAbandoned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.abandoned
}

// forgetEnd forgets a program that nobody waits for, once it has ended.
func (p *Process) forgetEnd() {
	p.Stdout.Close()
	p.Stderr.Close()
	<-p.done
	p.Forget()
}

// end sets how the program ended, or could not be started.
func (p *Process) end(err error, m *wire.ExitMessage) {
	p.mu.Lock()
	p.err, p.exit = err, m
	if !isClosed(p.begun) {
		if p.abandoned {
			p.c.unbegun.Add(-1)
		}
		close(p.begun)
	}
	if !isClosed(p.done) {
		close(p.done)
	}
	for _, ch := range p.asked {
		close(ch)
	}
	p.asked = nil
	p.change.Broadcast()
	p.mu.Unlock()
	p.c.wake()
	if err != nil {
		p.Stdout.hangUp()
		p.Stderr.hangUp()
	}
}

func (p *Process) lost(err error) {
	if isClosed(p.done) { // it has ended; only its output is cut off
		p.Stdout.hangUp()
		p.Stderr.hangUp()
		return
	}
	p.end(fmt.Errorf("%w (%w)", err, isolation.ErrUnavailable), nil)
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the program alone. One that has ended needs none.
func (p *Process) Signal(sig isolation.Signal) error { return p.kill(uint64(sig), false) }

// Kill ends the program and what it started, as far as the guest can tell what
// that is.
func (p *Process) Kill() error { return p.kill(9, true) }

func (p *Process) kill(sig uint64, group bool) error {
	if isClosed(p.done) {
		return nil
	}
	m := wire.KillMessage{Signal: sig, Group: group}
	return p.c.send(wire.Kill, p.stream, m.Append(nil))
}

// Resize sets the size of the program's terminal.
func (p *Process) Resize(size isolation.TerminalSize) error {
	m := wire.ResizeMessage{Rows: uint64(size.Rows), Cols: uint64(size.Cols)}
	return p.c.send(wire.Resize, p.stream, m.Append(nil))
}

var (
	errEnded      = errors.New("the program has ended")
	errUnanswered = errors.New("the guest answers nothing")
)

// What may wait for an answer of a guest that gives none: questions about one
// program, and programs of a connection that nobody waits for any more.
const (
	maxAsked   = 16
	maxUnbegun = 64
)

// maxOffset is more than a stream can have had.
const maxOffset = 1 << 62

// Usage asks what the program, and what it started, has used by now.
func (p *Process) Usage(ctx context.Context) (wire.UsageMessage, error) {
	ch := make(chan wire.UsageMessage, 1)
	p.mu.Lock()
	if isClosed(p.done) {
		p.mu.Unlock()
		return wire.UsageMessage{}, errEnded
	}
	if len(p.asked) == maxAsked {
		p.mu.Unlock()
		return wire.UsageMessage{}, errUnanswered
	}
	p.asked = append(p.asked, ch)
	p.mu.Unlock()
	if err := p.c.send(wire.Usage, p.stream, nil); err != nil {
		return wire.UsageMessage{}, err
	}
	select {
	case m, ok := <-ch:
		if !ok {
			return m, errEnded
		}
		return m, nil
	case <-ctx.Done():
		return wire.UsageMessage{}, ctx.Err()
	}
}

func (p *Process) answered(body []byte) error {
	var m wire.UsageMessage
	if err := m.Parse(body); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked) == 0 {
		if p.exit != nil {
			return nil // it was asked before the end
		}
		return fmt.Errorf("%w: USAGE that nobody asked for", wire.ErrProtocol)
	}
	p.asked[0] <- m
	p.asked = p.asked[1:]
	return nil
}

// Write sends input. It waits for credit, and fails once the program has ended.
func (p *Process) Write(b []byte) (int, error) {
	total := 0
	for len(b) > 0 {
		p.mu.Lock()
		for p.credit == 0 && !p.eof && !isClosed(p.done) {
			p.change.Wait()
		}
		if p.eof || isClosed(p.done) {
			p.mu.Unlock()
			return total, io.ErrClosedPipe
		}
		n := int(min(uint64(len(b)), p.credit, wire.MaxData/2))
		p.credit -= uint64(n)
		p.mu.Unlock()
		if err := p.c.sendData(wire.Stdin, p.stream, b[:n], p.done); err != nil {
			return total, err
		}
		total += n
		b = b[n:]
	}
	return total, nil
}

// CloseStdin ends the input.
func (p *Process) CloseStdin() error {
	p.mu.Lock()
	was := p.eof
	p.eof = true
	p.change.Broadcast()
	p.mu.Unlock()
	if was || isClosed(p.done) {
		return nil
	}
	return p.c.send(wire.StdinEOF, p.stream, nil)
}

// Done is closed when the program has ended, or nobody will tell how it did.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the program ended, when it has. Output may still come.
func (p *Process) Wait() (*wire.ExitMessage, error) {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.exit
	switch {
	case p.err != nil:
		return nil, p.err
	case m.Cause == wire.CauseExited && m.Code <= 255, m.Cause == wire.CauseSignaled && m.Signal >= 1 && m.Signal <= 64:
		return m, nil
	}
	return nil, fmt.Errorf("the guest says that it ended with cause %d, status %d, signal %d: %s", m.Cause, m.Code, m.Signal, Tame(m.Detail, 200))
}

// Forget acknowledges the end: the guest keeps nothing of the program, and its
// id is free. Output that was not delivered is dropped.
func (p *Process) Forget() {
	p.mu.Lock()
	send := p.exit != nil && !p.ackSent
	p.ackSent = p.ackSent || send
	p.mu.Unlock()
	if !send {
		return
	}
	_ = p.c.send(wire.Exit, p.stream, nil)
	p.c.forget(p.stream)
	p.Stdout.hangUp()
	p.Stderr.hangUp()
}

// An output that was asked to finish is taken to be at its end when it has said
// nothing for so long, or when its pauses together are so many times as long.
const (
	finishPatience = 5 * time.Second
	finishPauses   = 5
)
