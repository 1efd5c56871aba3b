package guest

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
)

// spawned is a program with descriptors of the host's. It ends with the
// connection.
type spawned struct {
	*program
	s      *session
	stream uint32
	tty    *terminal     // nil: none
	noted  chan struct{} // closed when the host has its pidfd, or is gone
	once   sync.Once
}

// spawn starts a program with three descriptors, and takes them.
func (s *session) spawn(stream uint32, m *wire.SpawnMessage, files []*os.File) error {
	p := &spawned{s: s, stream: stream, noted: make(chan struct{})}
	var err error
	p.program, err = s.g.start(m, func(u account) ([]*os.File, error) {
		if !m.Tty {
			return files, nil
		}
		if p.tty, err = s.g.newTerminal(m, u.uid, u.gid); err != nil {
			return nil, err
		}
		return p.tty.theirs(), nil
	})
	switch {
	case p.tty != nil && err == nil:
		p.tty.join(files)
	default:
		if p.tty != nil {
			p.tty.close()
		}
		for _, f := range files {
			f.Close()
		}
	}
	if err != nil {
		return s.answer(wire.Fail, stream, nil, err)
	}
	if err = s.open(stream, p); err == nil {
		said := wire.SpawnedMessage{}
		var rc interface{ Control(func(uintptr)) error }
		if rc, err = p.fd.SyscallConn(); err == nil {
			cerr := rc.Control(func(fd uintptr) { err = s.l.send(wire.Spawned, stream, said.Append(nil), int(fd)) })
			err = errors.Join(err, cerr)
		}
	}
	if err != nil {
		p.lost()
	}
	go p.wait()
	return err
}

// frame implements talker.
func (p *spawned) frame(f wire.Frame) error {
	switch f.Type {
	case wire.Run:
		// The host has the pidfd, by which it finds the number: from now on it
		// may be reaped.
		p.once.Do(func() { close(p.noted) })
	case wire.Resize:
		var m wire.ResizeMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		if p.tty != nil {
			_ = p.tty.resize(m.Rows, m.Cols)
		}
	default:
		return notSent(f)
	}
	return nil
}

func (p *spawned) lost() {
	p.once.Do(func() { close(p.noted) })
	p.signal(unix.SIGKILL)
}

// wait reaps the program and tells how it ended.
func (p *spawned) wait() {
	<-p.noted
	m := p.reap()
	if p.tty != nil {
		p.tty.ended()
	}
	p.s.forget(p.stream)
	p.fd.Close()
	if p.s.g.isFull() {
		m.DiskHits = 1
	}
	go removeGroup(p.group)
	m.Wall = 0 // the host has it from the descriptor
	_ = p.s.l.send(wire.Exit, p.stream, m.Append(nil), -1)
}

// endGrace is how long background programs that hold an output delay its end.
const endGrace = 100 * time.Millisecond
