package proc

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// holdBytes is what is held of an output for who attaches later. Who carries the
// output sends no more than that without an acknowledgement.
const holdBytes = 128 << 10

// HeldSource is an output that is held on the other side until it is acknowledged.
type HeldSource interface {
	Source
	// Acknowledge says that so many bytes more of what was read need not be held.
	Acknowledge(n int)
}

// heldOutput is an output that several callers may have, each from a place of his own.
// It is the writer of a Stream. What the slowest of them has is acknowledged.
type heldOutput struct {
	ack func(n int)

	mu      sync.Mutex
	change  *sync.Cond
	base    int64 // offset of buf[0]
	buf     []byte
	known   int64 // offset up to which something is on its way at least
	acked   int64
	alone   bool // nobody has attached since this was recovered: nothing is acknowledged
	ended   bool // nothing comes any more
	callers map[*caller]bool
}

// newHeld holds an output from an offset on. With alone, up to known it was written
// before this side was there.
func newHeld(from, known int64, alone bool, ack func(int)) *heldOutput {
	h := &heldOutput{ack: ack, base: from, known: max(from, known), acked: from, alone: alone, callers: map[*caller]bool{}}
	h.change = sync.NewCond(&h.mu)
	return h
}

func (h *heldOutput) endLocked() int64 { return h.base + int64(len(h.buf)) }

// Write takes what has come. It does not block: what may come is bounded by what
// was acknowledged.
func (h *heldOutput) Write(b []byte) (int, error) {
	h.mu.Lock()
	h.buf = append(h.buf, b...)
	if len(h.buf) > 2*holdBytes {
		keep := min(h.endLocked()-holdBytes, h.slowestLocked()) - h.base
		h.buf = h.buf[:copy(h.buf, h.buf[keep:])]
		h.base += keep
	}
	h.change.Broadcast()
	h.mu.Unlock()
	h.acknowledge()
	return len(b), nil
}

func (h *heldOutput) slowestLocked() int64 {
	at := h.endLocked()
	if h.alone {
		return h.acked
	}
	for c := range h.callers {
		at = min(at, c.at)
	}
	return at
}

func (h *heldOutput) acknowledge() {
	h.mu.Lock()
	n := h.slowestLocked() - h.acked
	if n > 0 {
		h.acked += n
	}
	h.mu.Unlock()
	if n > 0 {
		h.ack(int(n))
	}
}

func (h *heldOutput) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.change.Broadcast()
}

// cut gives nothing more to anybody.
func (h *heldOutput) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.callers {
		c.over = true
	}
	clear(h.callers)
	h.change.Broadcast()
}

// caller gets an output.
type caller struct {
	h    *heldOutput
	w    io.Writer
	at   int64 // guarded by h.mu; he has what is before
	in   bool  // guarded by h.mu; a Write is under way
	over bool  // guarded by h.mu; no Write begins
	done chan struct{}
}

// attach gives the output from an offset on to w; nil takes nothing.
func (h *heldOutput) attach(name string, from int64, w io.Writer) (*caller, error) {
	h.mu.Lock()
	if end := max(h.known, h.endLocked()); from > end || from < 0 {
		h.mu.Unlock()
		return nil, fmt.Errorf("%s offset %d: %d bytes were written: %w", name, from, end, isolation.ErrInvalidArgument)
	}
	if from < h.base {
		defer h.mu.Unlock()
		return nil, fmt.Errorf("%s offset %d: held from %d on: %w", name, from, h.base, isolation.ErrFailedPrecondition)
	}
	c := &caller{h: h, w: w, at: from, over: w == nil, done: make(chan struct{})}
	if c.over {
		close(c.done)
	} else {
		h.callers[c] = true
	}
	h.mu.Unlock()
	return c, nil
}

// begin has an attached caller get the output.
func (c *caller) begin() {
	h := c.h
	h.mu.Lock()
	h.alone = false
	over := c.over
	h.mu.Unlock()
	h.acknowledge()
	if !over {
		go c.deliver()
	}
}

// leave takes back an attach that was not begun.
func (c *caller) leave() {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	delete(c.h.callers, c)
}

func (c *caller) deliver() {
	defer close(c.done)
	h := c.h
	buf := Bufs.Get().(*[BufBytes]byte)
	defer Bufs.Put(buf)
	for {
		h.mu.Lock()
		for !c.over && !h.ended && c.at >= h.endLocked() {
			h.change.Wait()
		}
		n := 0
		if c.at < h.endLocked() {
			n = copy(buf[:], h.buf[c.at-h.base:])
		}
		if c.over || n == 0 {
			c.over = true
			delete(h.callers, c)
			h.mu.Unlock()
			h.acknowledge()
			return
		}
		c.in = true
		h.mu.Unlock()
		took, err := c.w.Write(buf[:n])
		h.mu.Lock()
		c.in = false
		if !c.over {
			c.at += int64(min(max(took, 0), n))
			c.over = err != nil || took < n
		}
		h.mu.Unlock()
		h.acknowledge()
	}
}

// drain waits until a caller has all of an output that has ended, and returns how
// much he was not given. One who takes nothing for several times the grace is
// given up.
func (c *caller) drain(grace time.Duration) (missing int64) {
	const parts, patience = 4, 5 * 4
	h := c.h
	tick := time.NewTicker(max(grace/parts, time.Millisecond))
	defer tick.Stop()
	last, idle := int64(-1), 0
	for waits := true; waits; {
		select {
		case <-c.done:
			waits = false
		case <-tick.C:
			h.mu.Lock()
			if idle++; !c.in || c.at != last {
				idle = 0
			}
			last = c.at
			h.mu.Unlock()
			waits = idle < patience
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c.over = true
	delete(h.callers, c)
	return max(0, h.endLocked()-c.at) // what was on its way to this side may never have come
}

// Outputs are the sources of a process that others may attach to.
type Outputs struct {
	Stdout, Stderr HeldSource
	// Recovered: an earlier host side had the process. What is held of its outputs
	// begins at From and ends at Until, and nobody gets any of it before he
	// attaches.
	Recovered   bool
	From, Until [2]int64
}

// Hold makes p's streams such that callers can attach to them. Else it is like
// NewStream.
func (p *Process) Hold(o Outputs) {
	for i, src := range []HeldSource{o.Stdout, o.Stderr} {
		h := newHeld(o.From[i], o.Until[i], o.Recovered, src.Acknowledge)
		s := p.NewStream(src, h)
		s.bytes = o.From[i]
		p.meter.total.Add(o.From[i])
		p.held[i] = h
		if i == 0 {
			p.Out = s
		} else {
			p.Err = s
		}
	}
}

// endHeld says that no more output comes.
func (p *Process) endHeld() {
	for _, h := range p.held {
		if h != nil {
			h.end()
		}
	}
}
