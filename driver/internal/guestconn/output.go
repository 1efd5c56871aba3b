package guestconn

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation/guest/wire"
)

// Output is an output of a process, or the content of a file. It implements
// proc.Source.
type Output struct {
	send func(kind wire.Type, body []byte) error
	kind wire.Type

	mu       sync.Mutex
	change   *sync.Cond
	buf      []byte // came, and was not read
	spare    []byte // where buf began, for what comes when it is read
	taken    int    // was read, and no credit given for it
	due      int    // of that, what was acknowledged
	over     bool   // no more comes
	closed   bool   // nobody reads
	manual   bool   // credit is given by Acknowledge
	quota    int    // what may still come once it was asked to finish
	finish   *time.Timer
	until    time.Time // the next is due; finish fires then
	pauses   time.Duration
	patience time.Duration // finishPatience
	finished bool
	cut      bool // it was over before the guest said so

	still *atomic.Bool // the guest is: that it says nothing means nothing
}

// maxRest is what an output may have when it is asked to finish: what the guest
// holds, and what is in a pipe.
const maxRest = wire.InitialWindow + 64<<10

func newOutput(kind wire.Type, still *atomic.Bool, send func(kind wire.Type, body []byte) error) *Output {
	o := &Output{send: send, kind: kind, still: still, patience: finishPatience}
	o.change = sync.NewCond(&o.mu)
	return o
}

// maxSpare bounds what an output keeps that nothing comes of.
const maxSpare = 64 << 10

// put takes a frame. An empty one is the end.
func (o *Output) put(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.over && !o.finished:
		return fmt.Errorf("%w: %s after its end", wire.ErrProtocol, o.kind)
	case len(b) == 0 || o.over:
		o.over = true
		o.change.Broadcast()
		return nil
	case len(o.buf)+o.taken+len(b) > wire.InitialWindow:
		return fmt.Errorf("%w: %d bytes of %s with %d on their way: more than the credit", wire.ErrProtocol, len(b), o.kind, len(o.buf)+o.taken)
	}
	if o.finish != nil {
		o.pauses += o.patience - time.Until(o.until)
		if o.quota -= len(b); o.quota < 0 || o.pauses > finishPauses*o.patience {
			o.over, o.finished, o.cut = true, true, true
			o.change.Broadcast()
			return nil
		}
		o.until = time.Now().Add(o.patience)
		o.finish.Reset(o.patience)
	}
	if o.closed {
		o.taken += len(b)
		o.grantLocked()
		return nil
	}
	if len(o.buf) > 0 {
		o.buf = append(o.buf, b...)
	} else {
		o.buf = append(o.spare, b...)
		if o.spare = nil; cap(o.buf) <= maxSpare {
			o.spare = o.buf[:0]
		}
	}
	o.change.Broadcast()
	return nil
}

// grantLocked gives credit back, in pieces that are worth a frame.
func (o *Output) grantLocked() {
	if o.taken < wire.InitialWindow/4 {
		return
	}
	m := wire.WindowMessage{Of: o.kind, Bytes: uint64(o.taken)}
	o.taken = 0
	_ = o.send(wire.Window, m.Append(nil)) // the reader sees it as well
}

// Read returns what has come, and io.EOF at the end.
func (o *Output) Read(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) == 0 && !o.over && !o.closed {
		o.change.Wait()
	}
	if o.closed || len(o.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(b, o.buf)
	if o.buf = o.buf[n:]; len(o.buf) == 0 {
		o.buf = nil
	}
	o.taken += n
	if !o.manual {
		o.grantLocked()
	}
	return n, nil
}

// Hold has credit given by Acknowledge alone, not for what was read: the guest holds
// it still. It is called before the first Read.
func (o *Output) Hold() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.manual = true
}

// Acknowledge says that so many bytes more of what was read need not be held.
func (o *Output) Acknowledge(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.due += min(n, o.taken-o.due); o.due >= wire.InitialWindow/4 {
		o.taken -= o.due
		m := wire.WindowMessage{Of: o.kind, Bytes: uint64(o.due)}
		o.due = 0
		_ = o.send(wire.Window, m.Append(nil)) // the reader sees it as well
	}
}

// await waits until something has come, and reports whether it has.
func (o *Output) await() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) == 0 && !o.over && !o.closed {
		o.change.Wait()
	}
	return len(o.buf) > 0
}

// impatient is called when nothing has come for a while.
func (o *Output) impatient() {
	if o.still.Load() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if !o.over {
			o.until = time.Now().Add(o.patience)
			o.finish.Reset(o.patience)
		}
		return
	}
	o.hangUp()
}

// hangUp says that nothing comes any more.
func (o *Output) hangUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cut = o.cut || !o.over
	o.over, o.finished = true, true
	if o.finish != nil {
		o.finish.Stop()
	}
	o.change.Broadcast()
}

// Finish has Read return io.EOF when all that was there is delivered. The guest
// says when that is, once the program has ended; one that does not is not waited
// for.
func (o *Output) Finish() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.finish == nil {
		o.quota, o.until = maxRest, time.Now().Add(o.patience)
		o.finish = time.AfterFunc(o.patience, o.impatient)
	}
	return true
}

// Cut reports whether the guest did not say that this was all.
func (o *Output) Cut() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cut
}

// Lingers is false: what background programs write is the guest's to drop.
func (o *Output) Lingers() bool { return false }

// Close gives up what comes.
func (o *Output) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.closed = true
		o.taken += len(o.buf)
		o.buf, o.spare = nil, nil
		o.grantLocked()
		o.change.Broadcast()
	}
	return nil
}
