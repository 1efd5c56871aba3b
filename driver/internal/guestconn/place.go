package guestconn

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
)

// Programs is the part of a proc.Place that starts programs through a guest. The
// rest, Kill and Remove, is of who made the sandbox.
type Programs struct {
	Conn      *Conn
	Resources isolation.Resources
	// Request makes the request of a process. Its ID is set after it.
	Request func(p *proc.Process) (*wire.ExecMessage, error)
	// PID is of what carries the programs on this host; 0: nothing of its own.
	PID int
	// Lost says why the connection has ended, for a result; nil: its own error.
	Lost func(err error) error
}

// Start implements a method of proc.Place.
func (pl *Programs) Start(ctx context.Context, p *proc.Process) (proc.Task, error) {
	t, err := pl.StartHeld(ctx, p)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// StartHeld is Start for who wraps the task.
func (pl *Programs) StartHeld(ctx context.Context, p *proc.Process) (proc.Holder, error) {
	m, err := pl.Request(p)
	if err != nil {
		return nil, err
	}
	m.ID, m.NoStdin = p.ID(), p.Stdio.Stdin == nil
	r, err := pl.Conn.Exec(ctx, m)
	if err != nil {
		return nil, err
	}
	return pl.held(p, r, proc.Outputs{}), nil
}

// held has the guest hold the output of a program, for who attaches.
func (pl *Programs) held(p *proc.Process, r *Process, o proc.Outputs) proc.Holder {
	r.Stdout.Hold()
	r.Stderr.Hold()
	o.Stdout, o.Stderr = r.Stdout, r.Stderr
	p.Hold(o)
	return &task{pl: pl, p: p, r: r}
}

// Adopt implements a method of proc.Adopter.
func (pl *Programs) Adopt(ctx context.Context, p *proc.Process) (proc.Task, error) {
	r, err := pl.Conn.Attach(ctx, &wire.AttachMessage{ID: p.ID(), Held: true})
	if err != nil {
		return nil, err
	}
	for _, st := range pl.Conn.Hello().Processes {
		if st.ID == p.ID() {
			return pl.Resume(p, r, st), nil
		}
	}
	return nil, fmt.Errorf("%w: process %s, which HELLO did not tell of", wire.ErrProtocol, p.ID())
}

// Resume goes on with a program that was attached to from where its output is held,
// and of which HELLO told.
func (pl *Programs) Resume(p *proc.Process, r *Process, st wire.ProcessState) proc.Task {
	o := proc.Outputs{Recovered: true, Until: [2]int64{int64(st.Stdout), int64(st.Stderr)}}
	o.From[0], o.From[1] = r.From()
	return pl.held(p, r, o)
}

// Kill ends the programs that this connection knows of.
func (pl *Programs) Kill() {
	pl.Conn.mu.Lock()
	var all []*Process
	for _, t := range pl.Conn.live {
		if p, ok := t.(*Process); ok {
			all = append(all, p)
		}
	}
	pl.Conn.mu.Unlock()
	for _, p := range all {
		_ = p.Kill() // who cannot be told is gone with the connection
	}
}

// task is one program. It implements proc.Holder.
type task struct {
	pl    *Programs
	p     *proc.Process
	r     *Process
	began time.Time

	killed atomic.Bool

	mu  sync.Mutex
	cpu time.Duration
}

func (t *task) Begin() {
	t.began = time.Now()
	go t.p.Out.Pump()
	go t.p.Err.Pump()
	if t.p.Stdio.Stdin != nil {
		go t.r.Feed(t.p.Stdio.Stdin, 0)
	}
}

// Feed moves a caller's input, from its byte skip on, to the program until either
// ends.
func (p *Process) Feed(from io.Reader, skip int64) {
	buf := proc.Bufs.Get().(*[proc.BufBytes]byte)
	defer proc.Bufs.Put(buf)
	for !isClosed(p.done) {
		n, err := from.Read(buf[:])
		known := min(skip, int64(n))
		skip -= known
		if int64(n) > known {
			if _, werr := p.Write(buf[known:n]); werr != nil {
				return
			}
		}
		if err != nil {
			_ = p.CloseStdin() // a guest that is gone needs none
			return
		}
	}
}

func (t *task) PID() int { return t.pl.PID }

func (t *task) Signal(sig isolation.Signal) error {
	if sig == isolation.SIGKILL {
		t.p.Signaled(sig)
	}
	if err := t.r.Signal(sig); err != nil && !isClosed(t.r.done) {
		return fmt.Errorf("send %v: %w (%w)", sig, err, isolation.ErrUnavailable)
	}
	return nil
}

func (t *task) Kill() {
	t.killed.Store(true)
	_ = t.r.Kill() // a guest that does not listen is ended by its driver
}

// usageTimeout bounds a question; a guest that does not answer has what it had.
const usageTimeout = time.Second

func (t *task) CPU() time.Duration {
	ctx, cancel := context.WithTimeout(context.Background(), usageTimeout)
	defer cancel()
	u, err := t.r.Usage(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.cpu = max(t.cpu, nanoseconds(u.CPU))
	}
	return t.cpu
}

// Resize implements the ability of a process with a terminal.
func (t *task) Resize(_ context.Context, size isolation.TerminalSize) error { return t.r.Resize(size) }

// What a guest says is not believed beyond what can be.
func nanoseconds(n uint64) time.Duration { return time.Duration(min(n, 1<<62)) }
func count(n uint64) int64               { return int64(min(n, 1<<62)) }

func (t *task) Wait() proc.Status {
	m, err := t.r.Wait()
	now := time.Now()
	if err != nil {
		if t.pl.Lost != nil {
			err = t.pl.Lost(err)
		}
		return proc.Status{Lost: true, Ended: now, Peak: -1, Detail: err.Error()}
	}
	st := proc.Status{
		Code: int(m.Code), Signal: isolation.Signal(m.Signal), CPU: nanoseconds(m.CPU), Peak: count(m.PeakMemory),
		Read: count(m.ReadBytes), Written: count(m.WrittenBytes), OOM: count(m.OOMKills), Survivors: int(min(m.Survivors, 1<<20)),
		Ended: now,
	}
	st.Forced = st.Signal == isolation.SIGKILL && t.killed.Load()
	if st.Signal != 0 {
		st.Code = 0
	}
	// The guest waited for background programs before it told, and says how long
	// the program itself ran.
	if ended := t.began.Add(nanoseconds(m.Wall)); m.Wall > 0 && ended.Before(now) {
		st.Ended = ended
	}
	r := t.pl.Resources
	for _, h := range []struct {
		n     uint64
		limit isolation.Limit
		value int64
	}{
		{m.OOMKills, isolation.LimitMemory, r.MemoryBytes}, {m.PidsHits, isolation.LimitPids, r.Pids}, {m.DiskHits, isolation.LimitDisk, r.DiskBytes},
	} {
		if h.n > 0 {
			st.Hits = append(st.Hits, isolation.LimitHit{Limit: h.limit, Count: count(h.n), Value: h.value})
		}
	}
	return st
}

func (t *task) Settle(st *proc.Status) {
	t.mu.Lock()
	st.CPU = max(st.CPU, t.cpu)
	t.mu.Unlock()
}

func (t *task) Input() (given int64, ended bool) { return int64(t.r.StdinOffset()), t.r.StdinEnded() }
func (t *task) Feed(from io.Reader, skip int64)  { t.r.Feed(from, skip) }
func (t *task) Forget()                          { t.r.Forget() }
