package guest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
)

const (
	// maxLive and maxEnded bound the processes that are known at a time. An end
	// that nobody acknowledged goes when there are more.
	maxLive  = 512
	maxEnded = 256
	maxID    = 64
)

// process is a program whose input and output go through frames. It outlives
// the connection on which it was started.
type process struct {
	*program
	g        *guest
	id       string
	in       *input
	out, err *output
	tty      *terminal // nil: none
	before   cgroup.Counters

	mu     sync.Mutex
	s      *session // nil: nobody is attached
	stream uint32
	reaped bool              // its number may be another's
	exit   *wire.ExitMessage // nil: it runs, or its end is being accounted for
}

// exec starts a process on a stream.
func (s *session) exec(stream uint32, m *wire.ExecMessage) error {
	p, err := s.g.execute(m)
	if err != nil {
		return s.answer(wire.Fail, stream, nil, err)
	}
	err = p.attach(s, stream, 0, 0)
	go p.wait()
	return err
}

// attach leads a stream to a process that was started before.
func (s *session) attach(stream uint32, m *wire.AttachMessage) error {
	s.g.mu.Lock()
	p := s.g.processes[m.ID]
	s.g.mu.Unlock()
	if p == nil {
		return s.answer(wire.Fail, stream, nil, &classError{classNotFound, fmt.Errorf("process %.80q", m.ID)})
	}
	for _, o := range []struct {
		*output
		from *uint64
	}{{p.out, &m.Stdout}, {p.err, &m.Stderr}} {
		if err := o.pin(o.from, m.Held); err != nil {
			return s.answer(wire.Fail, stream, nil, err)
		}
	}
	return p.attach(s, stream, m.Stdout, m.Stderr)
}

// execute starts a process that nobody is attached to yet.
func (g *guest) execute(m *wire.ExecMessage) (_ *process, err error) {
	p := &process{g: g, id: m.ID}
	if m.ID == "" || len(m.ID) > maxID {
		return nil, &classError{classInvalid, fmt.Errorf("process id of %d bytes", len(m.ID))}
	}
	g.mu.Lock()
	_, taken := g.processes[m.ID]
	full := len(g.processes)-len(g.ended) >= maxLive
	if !taken && !full {
		g.processes[m.ID] = p
	}
	g.mu.Unlock()
	switch {
	case taken:
		return nil, &classError{classExists, fmt.Errorf("process %s", m.ID)}
	case full:
		return nil, &classError{classExhausted, fmt.Errorf("%d processes run", maxLive)}
	}
	var theirs, ours []*os.File
	defer func() {
		closeFiles(theirs)
		if err != nil {
			closeFiles(ours)
			if p.tty != nil {
				p.tty.close()
			}
			g.mu.Lock()
			delete(g.processes, m.ID)
			g.mu.Unlock()
		}
	}()
	sm := &wire.SpawnMessage{Args: m.Args, Env: m.Env, Cwd: m.Cwd, User: m.User, Rlimits: m.Rlimits, Tty: m.Tty, Rows: m.Rows, Cols: m.Cols}
	p.before = g.groupCounters()
	p.program, err = g.start(sm, func(u account) (_ []*os.File, err error) {
		if m.Tty {
			if p.tty, err = g.newTerminal(sm, u.uid, u.gid); err != nil {
				return nil, err
			}
			theirs = []*os.File{p.tty.slave} // closed once it runs
			return p.tty.theirs(), nil
		}
		theirs, ours, err = pipes(m.NoStdin)
		return theirs, err
	})
	if err != nil {
		return nil, err
	}
	if p.tty != nil {
		p.in, p.out, p.err = newInput(p.tty.master), newOutput(wire.Stdout, p.tty.master), newOutput(wire.Stderr, nil)
	} else {
		p.in, p.out, p.err = newInput(ours[0]), newOutput(wire.Stdout, ours[1]), newOutput(wire.Stderr, ours[2])
	}
	go p.in.feed(p.grant)
	go p.out.pump()
	go p.err.pump()
	return p, nil
}

// pipes makes the ends of a program's descriptors 0, 1 and 2, and ours. Ours of
// an input that is empty is nil.
func pipes(noStdin bool) (theirs, ours []*os.File, err error) {
	theirs, ours = make([]*os.File, 3), make([]*os.File, 3)
	if noStdin {
		theirs[0], err = os.Open(os.DevNull)
	} else {
		theirs[0], ours[0], err = os.Pipe()
	}
	for i := 1; err == nil && i < 3; i++ {
		ours[i], theirs[i], err = os.Pipe()
	}
	// Ends of a plain program block.
	for _, f := range theirs {
		if f != nil && err == nil {
			err = unix.SetNonblock(fdOf(f), false)
		}
	}
	if err != nil {
		closeFiles(theirs)
		closeFiles(ours)
		return nil, nil, &classError{classExhausted, fmt.Errorf("make pipes: %w", err)}
	}
	return theirs, ours, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// state is what HELLO tells.
func (p *process) state() wire.ProcessState {
	st := wire.ProcessState{ID: p.id}
	if p.program == nil {
		return st // it is starting
	}
	st.Stdin = p.in.came()
	st.StdoutHeld, st.Stdout = p.out.held()
	st.StderrHeld, st.Stderr = p.err.held()
	p.mu.Lock()
	defer p.mu.Unlock()
	st.Ended = p.exit != nil
	return st
}

// attach begins, or begins again, to send what there is. SPAWNED comes before all
// else: nothing is sent for the process while p.mu is held.
func (p *process) attach(s *session, stream uint32, stdout, stderr uint64) error {
	if err := s.open(stream, p); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// One stream of this connection may take over from another.
	if p.s != nil {
		p.s.forget(p.stream)
	}
	p.s, p.stream = s, stream
	said := wire.SpawnedMessage{PID: uint64(p.pid), Stdout: stdout, Stderr: stderr}
	said.Stdin, said.StdinCredit, said.StdinEnd = p.in.credit()
	pidfd := -1
	if s.l.passes() {
		pidfd = fdOf(p.fd)
	}
	if err := s.l.send(wire.Spawned, stream, said.Append(nil), pidfd); err != nil {
		return err
	}
	p.out.attach(s.l, stream, stdout)
	p.err.attach(s.l, stream, stderr)
	if p.exit != nil {
		return s.l.send(wire.Exit, stream, p.exit.Append(nil), -1)
	}
	return nil
}

// lost implements talker. The process runs on, until its output has filled what
// is held.
func (p *process) lost() {
	p.mu.Lock()
	s := p.s
	p.s = nil
	p.mu.Unlock()
	if s != nil {
		p.out.detach(s.l)
		p.err.detach(s.l)
	}
}

// frame implements talker.
func (p *process) frame(f wire.Frame) error {
	switch f.Type {
	case wire.Stdin:
		return p.in.put(f.Body)
	case wire.StdinEOF:
		p.in.end()
	case wire.Window:
		var m wire.WindowMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		switch m.Of {
		case wire.Stdout:
			return p.out.ack(m.Bytes)
		case wire.Stderr:
			return p.err.ack(m.Bytes)
		}
		return notSent(f)
	case wire.Kill:
		var m wire.KillMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		p.kill(unix.Signal(m.Signal), m.Group)
	case wire.Resize:
		var m wire.ResizeMessage
		if err := m.Parse(f.Body); err != nil {
			return err
		}
		if p.tty != nil {
			_ = p.tty.resize(m.Rows, m.Cols) // one that is closed has no size
		}
	case wire.Usage:
		u := p.used()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.sendLocked(wire.Usage, u.Append(nil))
	case wire.Exit:
		p.acknowledged()
	default:
		return notSent(f)
	}
	return nil
}

func notSent(f wire.Frame) error {
	return fmt.Errorf("%w: %s is not sent for this stream", wire.ErrProtocol, f.Type)
}

// sendLocked sends a frame to whom is attached.
func (p *process) sendLocked(t wire.Type, body []byte) {
	if p.s != nil {
		_ = p.s.l.send(t, p.stream, body, -1) // the reader sees it as well
	}
}

// grant gives back credit for input that went into the program.
func (p *process) grant() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.in.taken(); n > 0 {
		m := wire.WindowMessage{Of: wire.Stdin, Bytes: n}
		p.sendLocked(wire.Window, m.Append(nil))
	}
}

// kill signals the program, and with group also what it started: all of its
// control group, or the process group that it leads.
func (p *process) kill(sig unix.Signal, group bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return
	}
	p.signal(sig)
	switch {
	case !group:
	case p.group != nil && sig == unix.SIGKILL:
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_ = p.group.Kill(ctx) // who is left is a survivor, and counted
		}()
	case p.group != nil:
		pids, _ := p.group.PIDs()
		for _, pid := range pids {
			if pid != p.pid {
				_ = unix.Kill(pid, sig)
			}
		}
	default:
		_ = unix.Kill(-p.pid, sig)
		for _, pid := range p.g.kin(p.pid) {
			_ = unix.Kill(pid, sig)
		}
	}
}

// used is what the process, and what it started, has used by now.
func (p *process) used() *wire.UsageMessage {
	if p.group != nil {
		m := usageOf(p.group)
		m.CPU = uint64(max(0, int64(m.CPU)-p.program.before.Nanoseconds()))
		return m
	}
	m := &wire.UsageMessage{}
	var ts unix.Timespec
	// The CPU clock of another process (clock_getcpuclockid(3)).
	if unix.ClockGettime(int32(^p.pid<<3|2), &ts) == nil {
		m.CPU = uint64(max(0, ts.Nano()-p.program.before.Nanoseconds()))
	}
	return m
}

// wait sees the process to its end.
func (p *process) wait() {
	m := p.reap()
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	p.in.end()
	p.in.close()
	grace := time.Now().Add(endGrace)
	if p.g.isFull() {
		m.DiskHits = 1
	}
	p.g.account(p, m, grace)
	p.mu.Lock()
	p.exit = m
	p.sendLocked(wire.Exit, m.Append(nil))
	p.mu.Unlock()
	p.g.hasEnded(p)
	// Who still holds the outputs gets this long; what is there by then is
	// delivered, and what comes later is dropped.
	time.Sleep(time.Until(grace))
	p.out.finish()
	p.err.finish()
}

// hasEnded keeps the end of a process until it is acknowledged.
func (g *guest) hasEnded(p *process) {
	g.mu.Lock()
	g.ended = append(g.ended, p)
	var oldest *process
	if len(g.ended) > maxEnded {
		oldest = g.ended[0]
	}
	g.mu.Unlock()
	if oldest != nil {
		oldest.acknowledged()
	}
}

// acknowledged forgets a process that has ended.
func (p *process) acknowledged() {
	p.mu.Lock()
	s, stream, over := p.s, p.stream, p.exit != nil
	p.mu.Unlock()
	if !over {
		return
	}
	g := p.g
	g.mu.Lock()
	known := g.processes[p.id] == p
	if known {
		delete(g.processes, p.id)
		g.ended = slices.DeleteFunc(g.ended, func(o *process) bool { return o == p })
	}
	g.mu.Unlock()
	if !known {
		return
	}
	if s != nil {
		s.forget(stream)
	}
	p.out.drop()
	p.err.drop()
	p.fd.Close()
	go removeGroup(p.group)
}
