package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
)

// ownStreams is where the streams begin that this package numbers. Those below
// are package guestconn's, which speaks the rest of the protocol over the same
// connection.
const ownStreams = 1 << 31

// rest is the connection as guestconn has it.
type rest struct {
	c  *conn
	in *io.PipeReader
}

func (r rest) Read(b []byte) (int, error) { return r.in.Read(b) }

// Write sends whole frames, as guestconn writes them.
func (r rest) Write(frame []byte) (int, error) {
	if err := r.c.send(context.Background(), frame, nil); err != nil {
		return 0, err
	}
	return len(frame), nil
}

// Close ends the connection: what the guest said of files was no answer.
func (r rest) Close() error { return errors.Join(r.in.Close(), r.c.f.Close()) }

// begin serves a connection whose HELLO has been read.
func (c *conn) begin(hello *wire.HelloMessage) error {
	in, out := io.Pipe()
	c.pass = out
	go func() { _, _ = out.Write(wire.Append(nil, wire.Hello, 0, hello.Append(nil))) }()
	var err error
	if c.rest, err = guestconn.Open(context.Background(), rest{c, in}, nil); err != nil {
		return err
	}
	go c.serve()
	return nil
}

// passed reports whether a frame was guestconn's, which has it by now.
func (c *conn) passed(f wire.Frame) (bool, error) {
	if f.Stream >= ownStreams || f.Stream == 0 {
		return false, nil
	}
	if f.Type == wire.Spawned {
		if err := c.keepPidfd(f.Stream); err != nil {
			return false, err
		}
	}
	// Who reads has all of it when Write returns.
	c.passing = wire.Append(c.passing[:0], f.Type, f.Stream, f.Body)
	_, err := c.pass.Write(c.passing)
	if cap(c.passing) > maxPassing {
		c.passing = nil
	}
	return true, err
}

// maxPassing bounds what a connection keeps of a frame that was passed on.
const maxPassing = 128 << 10

// keepPidfd keeps the descriptor that came with a SPAWNED for guestconn.
func (c *conn) keepPidfd(stream uint32) error {
	f, err := c.take()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfds[stream] != nil || len(c.pidfds) >= maxFound {
		f.Close()
		return fmt.Errorf("%w: SPAWNED for stream %d, which nobody waits for", wire.ErrProtocol, stream)
	}
	c.pidfds[stream] = f
	return nil
}

// pidfd takes the descriptor of a program that guestconn has.
func (c *conn) pidfd(stream uint32) *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.pidfds[stream]
	delete(c.pidfds, stream)
	return f
}

// Files implements [proc.Filer]. Where the root is read-only Landlock forbids programs
// more than modes and mounts do, as to write to /dev.
func (c *container) Files() proc.Files {
	return &guestconn.Files{Conn: c.conn.rest, Users: c.root != nil}
}

// Ports implements [proc.Porter].
func (c *container) Ports() proc.Ports { return &guestconn.Ports{Conn: c.conn.rest} }

// resizePatience is how long a guest may take to take so little.
const resizePatience = 5 * time.Second

// Resize sets the size of the program's terminal.
func (ch *child) Resize(size isolation.TerminalSize) error {
	m := wire.ResizeMessage{Rows: uint64(size.Rows), Cols: uint64(size.Cols)}
	ctx, cancel := context.WithTimeout(context.Background(), resizePatience)
	defer cancel()
	if err := ch.conn.send(ctx, wire.Append(nil, wire.Resize, ch.stream, m.Append(nil)), nil); err != nil {
		return fmt.Errorf("%w (%w)", err, isolation.ErrFailedPrecondition)
	}
	return nil
}
