package mem

import (
	"io"
	"sync"
	"time"
)

const (
	pipeBytes  = 64 << 10 // what may lie between a program and its caller
	chunkBytes = 32 << 10 // of one Write to the caller
	// drainGrace is how long a Write of the caller may stay blocked once the
	// process ended.
	drainGrace = 100 * time.Millisecond
)

// stream is one output of a process: a log that the program appends to and
// that sinks read, each at its own place. The slowest sink holds the program
// back.
type stream struct {
	retain int64

	mu      sync.Mutex
	changed chan struct{}  // guarded by mu; closed and replaced when anything changes
	base    int64          // guarded by mu; offset of buf[0]
	buf     []byte         // guarded by mu
	over    int64          // guarded by mu; written beyond the output limit, not kept
	sinks   map[*sink]bool // guarded by mu; those that still take data
	kept    int64          // guarded by mu; nothing from here on is dropped before somebody attaches; -1: nobody was let go
	ended   bool           // guarded by mu; nothing more will be appended
}

// sink delivers a stream to one writer.
type sink struct {
	s      *stream
	w      io.Writer
	pos    int64 // guarded by s.mu; delivered up to here
	closed bool  // guarded by s.mu; no Write begins any more
	done   chan struct{}
}

func newStream(retain int64) *stream {
	return &stream{retain: retain, changed: make(chan struct{}), sinks: map[*sink]bool{}, kept: -1}
}

func (s *stream) changeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *stream) endLocked() int64 { return s.base + int64(len(s.buf)) }

// attach delivers from offset on to w. A nil w takes nothing. ok is false, and
// nothing is done, when the offset is outside what is held.
func (s *stream) attach(w io.Writer, from int64) (_ *sink, base, end int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if base, end = s.base, s.endLocked(); from < base || from > end {
		return nil, base, end, false
	}
	k := &sink{s: s, w: w, pos: from, done: make(chan struct{})}
	s.kept = -1
	s.changeLocked()
	if w == nil {
		close(k.done)
		return k, base, end, true
	}
	s.sinks[k] = true
	go k.run()
	return k, base, end, true
}

// append takes b from the program, waiting while the pipe is full. It returns
// how much it took before stop was closed.
func (s *stream) append(stop <-chan struct{}, b []byte) int {
	taken := 0
	for {
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			return taken
		}
		slowest := s.endLocked()
		if s.kept >= 0 {
			slowest = s.kept
		}
		for k := range s.sinks {
			slowest = min(slowest, k.pos)
		}
		if n := min(int64(len(b)), pipeBytes-(s.endLocked()-slowest)); n > 0 {
			s.trimLocked(slowest)
			s.buf = append(s.buf, b[:n]...)
			b, taken = b[n:], taken+int(n)
			s.changeLocked()
		}
		wait := s.changed
		s.mu.Unlock()
		if len(b) == 0 {
			return taken
		}
		select {
		case <-wait:
		case <-stop:
			return taken
		}
	}
}

// trimLocked forgets what no sink needs and is older than what is retained. It
// acts only now and then, because it moves the rest.
func (s *stream) trimLocked(slowest int64) {
	keep := max(s.base, min(slowest, s.endLocked()-s.retain))
	if n := keep - s.base; n > s.retain+pipeBytes {
		s.buf = s.buf[:copy(s.buf, s.buf[n:])]
		s.base = keep
	}
}

func (s *stream) beyond(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over += int64(n)
}

// letGo cuts all sinks off, and holds the program back until another comes: what
// the slowest was not given is kept.
func (s *stream) letGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept < 0 {
		s.kept = s.endLocked()
	}
	for k := range s.sinks {
		s.kept = min(s.kept, k.pos)
		k.closed = true
	}
	clear(s.sinks)
	s.changeLocked()
}

// end says that nothing more comes.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		s.changeLocked()
	}
}

// total is all that the program wrote.
func (s *stream) total() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endLocked() + s.over
}

func (k *sink) run() {
	defer close(k.done)
	s := k.s
	buf := make([]byte, chunkBytes)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		k.closed = true
		delete(s.sinks, k)
		s.changeLocked()
	}()
	for !k.closed {
		n := copy(buf, s.buf[k.pos-s.base:])
		if n == 0 {
			if s.ended {
				return
			}
			wait := s.changed
			s.mu.Unlock()
			<-wait
			s.mu.Lock()
			continue
		}
		s.mu.Unlock()
		took, err := k.w.Write(buf[:n])
		s.mu.Lock()
		if k.closed {
			return // it came too late to count
		}
		k.pos += int64(max(0, min(took, n)))
		s.changeLocked()
		if err != nil || took < n {
			return
		}
	}
}

// drain waits until all was delivered, unless the writer takes nothing for
// several times drainGrace, and returns what was not. No Write begins after it.
func (k *sink) drain() (dropped int64) {
	s := k.s
	tick := time.NewTicker(drainGrace)
	defer tick.Stop()
	const patience = 5 // on a busy host a good writer may wait so long for a processor
	last, idle := int64(-1), 0
	for waiting := true; waiting; {
		select {
		case <-k.done:
			waiting = false
		case <-tick.C:
			s.mu.Lock()
			if idle++; k.pos != last {
				idle = 0
			}
			waiting = idle < patience
			last = k.pos
			s.mu.Unlock()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !k.closed {
		k.closed = true
		delete(s.sinks, k)
		s.changeLocked()
	}
	return s.endLocked() + s.over - k.pos
}

// detach ends a sink before its stream ended.
func (k *sink) detach() {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if !k.closed {
		k.closed = true
		delete(k.s.sinks, k)
		k.s.changeLocked()
	}
}
