package wasm

import (
	"io"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// output carries one stream from the worker's reader to the caller's writer.
// The reader never waits for the writer: what is in flight is bounded by the
// credit that the worker has, and credit comes back as the writer takes data.
type output struct {
	w     io.Writer   // nil: count and drop
	grant func(n int) // gives credit back; not called after close

	mu      sync.Mutex
	idle    sync.Cond // signalled when pumping ends
	queue   []byte    // guarded by mu
	spare   []byte    // guarded by mu; the buffer that is not in use
	pumping bool      // guarded by mu
	closed  bool      // guarded by mu; no new write begins
	writing int64     // guarded by mu; number of the Write under way; 0: none is
	writes  int64     // guarded by mu; how many have begun
	failed  bool      // guarded by mu; the writer returned an error
	total   int64     // guarded by mu
	passed  int64     // guarded by mu; taken by the writer
	owed    int       // guarded by mu; credit not yet given back
	credit  int       // guarded by mu; what the worker may still send
}

func (o *output) init(w io.Writer, grant func(int)) {
	o.w, o.grant, o.credit = w, grant, wire.InitialWindow
	o.idle.L = &o.mu
}

// push takes what the worker sent, of which the first keep bytes are for the
// caller. It reports false if the worker had no credit for it.
func (o *output) push(b []byte, keep int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.credit -= len(b); o.credit < 0 {
		return false
	}
	o.total += int64(len(b))
	if o.w == nil || o.failed || o.closed {
		o.giveLocked(len(b))
		return true
	}
	if o.queue == nil {
		o.queue, o.spare = o.spare[:0], nil
	}
	o.queue = append(o.queue, b[:keep]...)
	o.giveLocked(len(b) - keep)
	if !o.pumping && len(o.queue) > 0 {
		o.pumping = true
		go o.pump()
	}
	return true
}

// giveLocked returns n bytes of credit, in grants that are large enough to be
// worth a message.
func (o *output) giveLocked(n int) {
	o.owed += n
	if o.owed >= wire.InitialWindow/2 && !o.closed {
		n, o.owed = o.owed, 0
		o.credit += n
		// The message is small, and the worker reads whenever it lacks
		// credit: the send does not wait for the module.
		o.grant(n)
	}
}

// pump writes until nothing is queued.
func (o *output) pump() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) > 0 && !o.closed && !o.failed {
		b := o.queue
		o.queue = nil
		o.writes++
		o.writing = o.writes
		o.mu.Unlock()
		n, err := o.w.Write(b)
		o.mu.Lock()
		o.writing = 0
		o.passed += int64(max(0, min(n, len(b))))
		o.spare = b[:0]
		if err != nil || n < len(b) {
			o.failed = true
			o.queue = nil
		}
		o.giveLocked(len(b))
	}
	o.pumping = false
	o.idle.Broadcast()
}

// settled reports whether nothing is left to write.
func (o *output) settled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.pumping
}

// A Write that is blocked for this many ticks after the end of a run is given
// up. Ticks are counted, not time, so that a host that was stalled for a while
// counts as one of them, not as a stuck writer; and they are many, because on a
// loaded host a good writer may wait so long for a processor.
const (
	drainTick  = 25 * time.Millisecond
	drainTicks = 20
)

// finish waits until what was pushed has been written, unless a Write is stuck,
// and lets no new write begin after that. A slow writer that goes on taking
// output gets all of it.
func (o *output) finish() isolation.Output {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pumping {
		var timer *time.Timer
		var in int64
		stuck := 0
		timer = time.AfterFunc(drainTick, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.closed {
				return
			}
			if stuck++; o.writing == 0 || o.writing != in {
				in, stuck = o.writing, 0
			}
			if stuck < drainTicks {
				timer.Reset(drainTick)
				return
			}
			o.closed = true
			o.idle.Broadcast()
		})
		for o.pumping && !o.closed {
			o.idle.Wait()
		}
		timer.Stop()
	}
	o.closed = true
	return isolation.Output{Bytes: o.total, Dropped: o.total - o.passed}
}
