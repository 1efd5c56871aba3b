package guest

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
)

// session is what belongs to one connection. Processes outlive it; programs that
// were spawned with descriptors of the host's, and file operations, do not.
type session struct {
	g *guest
	l *link

	files atomic.Int32 // file operations under way
	conns atomic.Int32 // connections of ports, and those that are waited for

	mu      sync.Mutex
	streams map[uint32]talker
}

// talker is what a stream leads to. It is called by the session's reader and
// must not wait for anything.
type talker interface {
	// frame takes a frame; what it keeps of the body it copies. An error ends the
	// connection.
	frame(f wire.Frame) error
	// lost says that the connection is gone.
	lost()
}

// hello says what there is.
func (g *guest) hello() *wire.HelloMessage {
	m := &wire.HelloMessage{Version: wire.Version, Role: "guest", Notes: g.notes, Steps: g.steps, NeedsSync: g.needsSync.Load()}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.processes {
		m.Processes = append(m.Processes, p.state())
	}
	return m
}

// serve serves one connection until it ends. The end by the host is no error.
func (g *guest) serve(l *link) error {
	s := &session{g: g, l: l, streams: map[uint32]talker{}}
	err := l.send(wire.Hello, 0, g.hello().Append(nil), -1)
	for err == nil {
		var f wire.Frame
		if f, err = l.Next(); err == nil {
			err = s.frame(f)
		}
	}
	l.end()
	s.mu.Lock()
	streams := s.streams
	s.streams = nil
	s.mu.Unlock()
	for _, t := range streams {
		t.lost()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

// open gives a stream its talker, which is new on this connection.
func (s *session) open(stream uint32, t talker) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.streams == nil:
		return io.EOF
	case stream == 0 || s.streams[stream] != nil:
		return fmt.Errorf("%w: stream %d is taken", wire.ErrProtocol, stream)
	}
	s.streams[stream] = t
	return nil
}

func (s *session) talker(stream uint32) talker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[stream]
}

func (s *session) forget(stream uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, stream)
}

// answer sends what a request has come to.
func (s *session) answer(t wire.Type, stream uint32, body []byte, err error) error {
	if err != nil {
		t, body = wire.Fail, failure(err).Append(nil)
	}
	return s.l.send(t, stream, body, -1)
}

func (s *session) frame(f wire.Frame) error {
	g := s.g
	switch f.Type {
	case wire.Ping:
		return s.l.send(wire.Pong, f.Stream, f.Body, -1)
	case wire.Spawn:
		var m wire.SpawnMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		files, err := s.l.take(3)
		if err != nil {
			return err
		}
		return s.spawn(f.Stream, &m, files)
	case wire.Exec:
		var m wire.ExecMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		return s.exec(f.Stream, &m)
	case wire.Attach:
		var m wire.AttachMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		return s.attach(f.Stream, &m)
	case wire.Prepare:
		var m wire.PrepareMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		stream := f.Stream
		go func() {
			err := g.mayStart()
			if err == nil {
				err = g.prepare(&m)
			}
			_ = s.answer(wire.Prepared, stream, nil, err)
		}()
		return nil
	case wire.File:
		var m wire.FileMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		return s.file(f.Stream, &m)
	case wire.Port:
		var m wire.PortMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		return s.port(f.Stream, &m)
	case wire.Sync, wire.Mount, wire.Power:
		return s.machine(f)
	case wire.Usage:
		if f.Stream == 0 {
			return s.answer(wire.Usage, 0, g.usage().Append(nil), nil)
		}
	}
	if t := s.talker(f.Stream); t != nil {
		return t.frame(f)
	}
	switch f.Type {
	case wire.Stdin, wire.StdinEOF, wire.Window, wire.Kill, wire.Resize, wire.Exit, wire.Run, wire.Usage:
		return nil // late, not wrong: the stream has ended
	}
	return fmt.Errorf("%w: a guest is not sent %s", wire.ErrProtocol, f.Type)
}
