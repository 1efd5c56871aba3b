package proc

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// BufBytes is as much as a pipe holds by default, so that one read empties it.
const BufBytes = 64 << 10

var Bufs = sync.Pool{New: func() any { return new([BufBytes]byte) }}

// Source is the driver's end of an output.
type Source interface {
	io.Reader
	// Finish asks Read to deliver what is there by now and then to return
	// io.EOF, once, even if writers are left. It reports whether it can.
	// To ask again changes nothing.
	Finish() bool
	// Lingers reports whether the source may still have writers after that
	// io.EOF, so that somebody must go on taking what they write.
	Lingers() bool
	Close() error
}

// meter counts the output of a process over both streams and calls over, once,
// when it exceeds the limit.
type meter struct {
	limit int64 // 0: none
	total atomic.Int64
	over  func()
	once  sync.Once
}

// take counts n bytes and returns how many of them are within the limit.
func (m *meter) take(n int) int {
	if m.limit == 0 {
		return n
	}
	beyond := m.total.Add(int64(n)) - m.limit
	if beyond <= 0 {
		return n
	}
	m.once.Do(m.over)
	return max(0, n-int(min(beyond, int64(n))))
}

func (m *meter) exceeded() bool { return m.limit > 0 && m.total.Load() > m.limit }

// Stream carries one output of a process to the caller's writer.
type Stream struct {
	src   Source
	meter *meter
	done  chan struct{} // closed when no more is delivered: end of input, or cut and back
	gone  chan struct{} // closed when the pump has returned

	mu       sync.Mutex
	w        io.Writer // nil: count and drop
	cut      bool      // nothing is delivered, or counted, any more
	bytes    int64
	dropped  int64
	inflight int64  // bytes that a Write has been given and not yet taken
	step     uint64 // changes with every read and write
}

// EndOfInput tells that no more is delivered of a stream that has no Pump, or
// whose Pump may not return.
func (s *Stream) EndOfInput() { close(s.done) }

// Pump delivers until the end of the input. After a cut it takes and drops
// what background processes write: they live until the sandbox is deleted, and
// a closed pipe would end them with SIGPIPE before.
func (s *Stream) Pump() {
	defer close(s.gone)
	defer s.src.Close()
	if s.deliver() && s.src.Lingers() {
		var small [4 << 10]byte
		for {
			if _, err := s.src.Read(small[:]); err != nil && !s.src.Lingers() {
				return
			}
		}
	}
}

// deliver reports whether it ended before the end of the input.
func (s *Stream) deliver() bool {
	defer close(s.done)
	buf := Bufs.Get().(*[BufBytes]byte)
	defer Bufs.Put(buf)
	for {
		n, err := s.src.Read(buf[:])
		if n > 0 && !s.write(buf[:n]) {
			return true
		}
		if err != nil {
			return s.src.Lingers()
		}
	}
}

// write hands b to the caller's writer and reports whether to go on.
func (s *Stream) write(b []byte) bool {
	s.mu.Lock()
	if s.cut {
		s.mu.Unlock()
		return false
	}
	// The limit acts before the writer is called: it may block.
	keep := s.meter.take(len(b))
	w := s.w
	s.step++
	s.bytes += int64(len(b))
	if w == nil || keep == 0 {
		s.dropped += int64(len(b))
		s.mu.Unlock()
		return true
	}
	s.dropped += int64(len(b) - keep)
	s.inflight = int64(keep)
	s.mu.Unlock()

	n, err := w.Write(b[:keep])

	s.mu.Lock()
	defer s.mu.Unlock()
	s.step++
	s.inflight = 0
	s.dropped += int64(keep - min(max(n, 0), keep))
	if err != nil || n < keep {
		s.w = nil
	}
	return !s.cut
}

// end stops all delivery and accounts for it. A Write that is under way counts
// as dropped: nobody can tell what it will take. A source with a method Cut tells
// that its end was not that of the output.
func (s *Stream) end() isolation.Output {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = true
	o := isolation.Output{Bytes: s.bytes, Dropped: s.dropped + s.inflight}
	if src, ok := s.src.(interface{ Cut() bool }); ok {
		o.Cut = src.Cut()
	}
	return o
}

// Close makes the pump of an ended stream return and waits for it, unless it
// cannot be woken or the caller's writer has it.
func (s *Stream) Close() {
	wakes := s.src.Finish()
	_ = s.src.Close()
	s.mu.Lock()
	writing := s.inflight > 0
	s.mu.Unlock()
	if wakes && !writing {
		<-s.gone
	}
}

// IsGone reports whether the pump has returned.
func (s *Stream) IsGone() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

func (s *Stream) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// stalled reports whether the stream is inside the same Write as at step.
func (s *Stream) stalled(step *uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := s.inflight > 0 && s.step == *step
	*step = s.step
	return same
}

// drain waits until the streams of an ended process have delivered. Writers
// that background processes hold open get the grace; after it, what is in the
// pipes by then is still delivered. A caller's writer that takes nothing for
// several times the grace is given up; it gets that much because on a loaded
// host a good writer may wait so long for a processor. Time is counted in
// ticks, so that a host that was stalled for a while counts as one of them, not
// as a lazy writer.
func drain(grace time.Duration, streams [2]*Stream) {
	const parts, patience = 4, 5 * 4
	var tick *time.Ticker
	var ticks int
	open := make([]*Stream, 0, 2)
	for _, s := range streams {
		if !s.ended() {
			open = append(open, s)
		}
	}
	idle := make([]int, len(open))
	step := make([]uint64, len(open))
	for len(open) > 0 {
		if tick == nil {
			tick = time.NewTicker(max(grace/parts, time.Millisecond))
			defer tick.Stop()
			for i, s := range open {
				s.stalled(&step[i])
			}
		}
		// Either may wake us; the loop looks at both.
		select {
		case <-open[0].done:
		case <-open[len(open)-1].done:
		case <-tick.C:
			ticks++
			for i, s := range open {
				if s.stalled(&step[i]) {
					idle[i]++
				} else {
					idle[i] = 0
				}
			}
		}
		n := 0
		for i, s := range open {
			gone := s.ended() || idle[i] >= patience || ticks == parts && !s.src.Finish()
			if !gone {
				open[n], idle[n], step[n] = s, idle[i], step[i]
				n++
			}
		}
		open = open[:n]
	}
}
