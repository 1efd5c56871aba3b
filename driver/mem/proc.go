package mem

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/axocoatl/isolation"
)

// Program is what mem runs; it returns its exit status. It should do all that
// takes time through its Proc, or watch Context, so that it can be ended: one
// that does neither is given up by Wait after a second, and holds up Delete and
// Close until it returns. A panic is a trap.
type Program func(*Proc) int

// Proc is a program's view of its process. Its calls end the goroutine, as
// runtime.Goexit does, once the process has been ended; and they wait while the
// sandbox is paused.
type Proc struct{ p *process }

// Context ends when the program must.
func (c *Proc) Context() context.Context { return c.p.ctx }

// Args is argv.
func (c *Proc) Args() []string { return slices.Clone(c.p.spec.Args) }

// Env is the environment.
func (c *Proc) Env() []string { return slices.Clone(c.p.spec.Env) }

// Cwd is the working directory.
func (c *Proc) Cwd() string { return c.p.spec.Cwd }

// User is whom the process runs as.
func (c *Proc) User() string { return c.p.spec.User }

// Hostname is the sandbox's.
func (c *Proc) Hostname() string { return c.p.s.spec.Hostname }

// Stdin, Stdout and Stderr are the program's ends of the pipes.
func (c *Proc) Stdin() io.Reader { return reader{c} }

// Stdout is the standard output.
func (c *Proc) Stdout() io.Writer { return writer{c, c.p.stdout} }

// Stderr is the standard error.
func (c *Proc) Stderr() io.Writer { return writer{c, c.p.stderr} }

type reader struct{ c *Proc }

func (r reader) Read(b []byte) (int, error) {
	r.c.check()
	n, err := r.c.p.stdin.read(r.c.p.ctx.Done(), b)
	r.c.check()
	return n, err
}

type writer struct {
	c *Proc
	s *stream
}

func (w writer) Write(b []byte) (int, error) {
	w.c.check()
	p, keep := w.c.p, len(b)
	if limit := p.spec.Limits.OutputBytes; limit > 0 {
		p.mu.Lock()
		keep = int(max(0, min(int64(keep), limit-p.written)))
		p.written += int64(len(b))
		p.mu.Unlock()
	}
	w.s.append(p.ctx.Done(), b[:keep])
	w.c.check()
	if keep < len(b) {
		w.s.beyond(len(b) - keep)
		w.c.limit(isolation.ReasonOutputLimit, isolation.LimitOutput, p.spec.Limits.OutputBytes)
	}
	return len(b), nil
}

// check ends the goroutine of a process that was ended, and waits while it is
// paused.
func (c *Proc) check() {
	for {
		c.p.mu.Lock()
		over, resume := c.p.reason != "", c.p.resume
		c.p.mu.Unlock()
		if over {
			runtime.Goexit()
		}
		if resume == nil {
			return
		}
		select {
		case <-resume:
		case <-c.p.ctx.Done():
		}
	}
}

// limit ends the process for a limit, and its goroutine.
func (c *Proc) limit(r isolation.Reason, l isolation.Limit, value int64) {
	p := c.p
	p.mu.Lock()
	if p.reason == "" {
		p.hitLocked(l, value)
		p.endLocked(r, 0, fmt.Sprintf("%s limit of %d", l, value))
	}
	p.mu.Unlock()
	runtime.Goexit()
}

// Sleep waits.
func (c *Proc) Sleep(d time.Duration) {
	c.check()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.p.ctx.Done():
	}
	c.check()
}

// Compute uses CPU time: it takes d, and counts d.
func (c *Proc) Compute(d time.Duration) {
	limit := c.p.spec.Limits.CPU
	c.p.mu.Lock()
	if left := limit - c.p.cpu; limit > 0 {
		d = min(d, left)
	}
	c.p.mu.Unlock()
	c.Sleep(d)
	c.p.mu.Lock()
	c.p.cpu += d
	over := limit > 0 && c.p.cpu >= limit
	c.p.mu.Unlock()
	if over {
		c.limit(isolation.ReasonTimeoutCPU, isolation.LimitCPUTime, int64(limit))
	}
}

// Step uses n units of fuel.
func (c *Proc) Step(n uint64) {
	c.check()
	limit := c.p.spec.Limits.Fuel
	c.p.mu.Lock()
	c.p.fuel += n
	over := limit > 0 && c.p.fuel > limit
	c.p.mu.Unlock()
	if over {
		c.limit(isolation.ReasonFuelExhausted, isolation.LimitFuel, int64(limit))
	}
}

// Alloc takes n bytes of memory, and reports whether it got them. A program
// that was refused and then fails has run out of memory.
func (c *Proc) Alloc(n int64) bool {
	c.check()
	s, p := c.p.s, c.p
	limit := s.spec.Resources.MemoryBytes
	got := s.take(&s.memory, n, limit)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !got {
		p.hitLocked(isolation.LimitMemory, limit)
		p.refused = true
		return false
	}
	p.memory += n
	p.peak = max(p.peak, p.memory)
	return true
}

// Fill writes n bytes to the sandbox's disk, and reports whether there was
// room.
func (c *Proc) Fill(n int64) bool {
	c.check()
	s, p := c.p.s, c.p
	limit := s.spec.Resources.DiskBytes
	got := s.take(&s.disk, n, limit)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !got {
		p.hitLocked(isolation.LimitDisk, limit)
		return false
	}
	p.disk += n
	return true
}

// Open takes a descriptor, and reports whether it got one. Three are open from
// the start.
func (c *Proc) Open() bool {
	c.check()
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if limit := c.p.spec.Limits.OpenFiles; limit > 0 && c.p.files+3 >= limit {
		c.p.hitLocked(isolation.LimitFiles, limit)
		return false
	}
	c.p.files++
	return true
}

// Spawn runs f in the background until ctx ends, which it does with the
// sandbox. It returns a channel that is closed once f returned, or nil when
// there may be no more tasks.
func (c *Proc) Spawn(f func(ctx context.Context)) <-chan struct{} {
	c.check()
	s, p := c.p.s, c.p
	ctx := s.spawned()
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx == nil {
		p.hitLocked(isolation.LimitPids, s.spec.Resources.Pids)
		return nil
	}
	p.children++
	d := s.driver()
	d.running.Add(1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			p.mu.Lock()
			p.children--
			p.mu.Unlock()
			d.running.Add(-1)
			s.taskEnded()
		}()
		f(ctx)
	}()
	return done
}

// Ignore has the process ignore a signal; SIGKILL can't be.
func (c *Proc) Ignore(sig isolation.Signal) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if sig != isolation.SIGKILL {
		c.p.ignored[sig] = true
	}
}

// Raise ends the program by a signal of its own.
func (c *Proc) Raise(sig isolation.Signal) {
	c.p.end(isolation.ReasonSignaled, sig, "")
	runtime.Goexit()
}

// Trap ends the program as a WASM trap does.
func (c *Proc) Trap(detail string) {
	c.p.end(isolation.ReasonTrap, 0, detail)
	runtime.Goexit()
}

// Deny ends the program because it did what it may not.
func (c *Proc) Deny(detail string) {
	c.p.end(isolation.ReasonPolicyDenied, 0, detail)
	runtime.Goexit()
}
