package worker

import (
	"io"
	"time"

	esys "github.com/tetratelabs/wazero/experimental/sys"

	"github.com/axocoatl/isolation/guest/wire"
)

// process is one run of the module: what the WASI functions see of it.
type process struct {
	c       *conn
	stream  uint32
	args    []string
	env     []string
	granted bool // the host answered RUN

	stdin  stdin
	stdout stdout
	stderr stdout
}

func newProcess(c *conn, stream uint32, m *wire.ExecMessage) *process {
	p := &process{c: c, stream: stream, args: m.Args, env: m.Env}
	p.stdin = stdin{p: p, eof: m.NoStdin}
	p.stdout = stdout{p: p, kind: wire.Stdout, credit: wire.InitialWindow}
	p.stderr = stdout{p: p, kind: wire.Stderr, credit: wire.InitialWindow}
	return p
}

// hostGone is panicked with through the guest's frames: there is nobody to
// report an error to.
type hostGone struct{ err error }

// blocked waits for ready, which frames from the host make true. While it
// waits, the host may let another process compute.
func (p *process) blocked(ready func() bool) {
	check := func(err error) {
		if err != nil {
			panic(hostGone{err})
		}
	}
	check(p.c.drain())
	if ready() {
		return
	}
	check(p.c.send(wire.Wait, p.stream, nil))
	check(p.c.pump(ready))
	p.resume()
}

// resume asks for the slot back that WAIT gave up.
func (p *process) resume() {
	p.granted = false
	err := p.c.send(wire.Run, p.stream, nil)
	if err == nil {
		err = p.c.pump(func() bool { return p.granted })
	}
	if err != nil {
		panic(hostGone{err})
	}
}

// shortSleep is not worth giving up the slot for: to get it back costs two
// messages.
const shortSleep = 500 * time.Microsecond

func (p *process) sleep(d time.Duration) {
	if d < shortSleep {
		time.Sleep(d)
		return
	}
	if err := p.c.send(wire.Wait, p.stream, nil); err != nil {
		panic(hostGone{err})
	}
	time.Sleep(d)
	p.resume()
}

// stdin is the module's fd 0. The host sends ahead up to the credit that it
// has; WINDOW gives back what was read.
type stdin struct {
	p    *process
	data []byte
	eof  bool
	read uint64 // since the last WINDOW
}

func (s *stdin) ready() bool { return len(s.data) > 0 || s.eof }

func (s *stdin) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if !s.ready() {
		s.p.blocked(s.ready)
	}
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.data)
	if s.data = s.data[n:]; len(s.data) == 0 {
		s.data = nil
	}
	s.read += uint64(n)
	if s.read >= wire.InitialWindow/2 && !s.eof {
		m := wire.WindowMessage{Of: wire.Stdin, Bytes: s.read}
		if err := s.p.c.send(wire.Window, s.p.stream, m.Append(nil)); err != nil {
			panic(hostGone{err})
		}
		s.read = 0
	}
	return n, nil
}

// Poll implements wazero's Pollable, so that poll_oneoff on stdin tells the
// truth and can time out.
func (s *stdin) Poll(flag esys.Pflag, timeoutMillis int32) (bool, esys.Errno) {
	if flag != esys.POLLIN {
		return false, esys.ENOTSUP
	}
	if s.ready() {
		return true, 0
	}
	if err := s.p.c.drain(); err != nil {
		panic(hostGone{err})
	}
	if s.ready() || timeoutMillis == 0 {
		return s.ready(), 0
	}
	if timeoutMillis < 0 {
		s.p.blocked(s.ready)
		return true, 0
	}
	if err := s.p.c.send(wire.Wait, s.p.stream, nil); err != nil {
		panic(hostGone{err})
	}
	deadline := time.Now().Add(time.Duration(timeoutMillis) * time.Millisecond)
	for !s.ready() {
		left := time.Until(deadline)
		if left <= 0 || !s.p.c.t.readable(left) {
			break
		}
		if err := s.p.c.drain(); err != nil {
			panic(hostGone{err})
		}
	}
	s.p.resume()
	return s.ready(), 0
}

// stdout is the module's fd 1 or 2. Nothing is buffered: what the module wrote
// before it is killed has left the worker.
type stdout struct {
	p      *process
	kind   wire.Type
	credit int64
	total  uint64
}

func (s *stdout) hasCredit() bool { return s.credit > 0 }

func (s *stdout) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		if s.credit <= 0 {
			s.p.blocked(s.hasCredit)
		}
		n := min(len(b), wire.MaxData, int(s.credit))
		if err := s.p.c.send(s.kind, s.p.stream, b[:n]); err != nil {
			panic(hostGone{err})
		}
		s.credit -= int64(n)
		s.total += uint64(n)
		written += n
		b = b[n:]
	}
	return written, nil
}
