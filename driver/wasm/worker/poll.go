package worker

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/tetratelabs/wazero/api"
	esys "github.com/tetratelabs/wazero/experimental/sys"
)

// poll_oneoff (snapshots/preview1/docs.md). wazero's own knows no absolute
// times, which CPython's sleep uses, and calls streams that can be written to
// unsupported.
const (
	subscriptionSize = 48
	eventSize        = 32
	maxSubscriptions = 1 << 16 // more than a module has use for

	eventClock = 0
	eventRead  = 1
	eventWrite = 2

	clockRealtime  = 0
	clockMonotonic = 1
	abstime        = 1 // subclockflags
)

type subscription struct {
	userdata [8]byte
	kind     byte
	fd       uint32
	never    bool // a clock that is never due
	due      time.Time
}

func (s *subscription) parse(b []byte, now time.Time) (errno uint64) {
	copy(s.userdata[:], b)
	s.kind = b[8]
	switch s.kind {
	case eventRead, eventWrite:
		s.fd = binary.LittleEndian.Uint32(b[16:])
		return errnoSuccess
	case eventClock:
	default:
		return errnoInval
	}
	timeout := binary.LittleEndian.Uint64(b[24:])
	switch binary.LittleEndian.Uint16(b[40:]) {
	case 0:
	case abstime:
		var clock uint64
		switch binary.LittleEndian.Uint32(b[16:]) {
		case clockRealtime:
			clock = uint64(max(0, now.UnixNano()))
		case clockMonotonic:
			clock = uint64(nanotime())
		default:
			return errnoInval
		}
		timeout -= min(timeout, clock)
	default:
		return errnoInval
	}
	// Beyond a century it is as good as never, and computes without overflow.
	s.never = timeout > math.MaxInt64/4
	s.due = now.Add(time.Duration(timeout & (math.MaxInt64 / 4)))
	return errnoSuccess
}

// pollOneoff implements poll_oneoff. Files are always ready, so that what is not
// open is told by the call that follows.
func pollOneoff(p *process, mem api.Memory, in, out, n, resultPtr uint32) (errno uint64) {
	if n == 0 {
		return errnoInval
	}
	if n > maxSubscriptions {
		return errnoOverflow
	}
	if mem == nil {
		return errnoFault
	}
	raw, ok := mem.Read(in, n*subscriptionSize)
	if _, room := mem.Read(out, n*eventSize); !ok || !room {
		return errnoFault
	}
	subs := make([]subscription, n)
	now := time.Now()
	var first *subscription
	input := false
	for i := range subs {
		s := &subs[i]
		if errno := s.parse(raw[i*subscriptionSize:], now); errno != errnoSuccess {
			return errno
		}
		if s.kind == eventClock && !s.never && (first == nil || s.due.Before(first.due)) {
			first = s
		}
		input = input || s.kind == eventRead && s.fd == 0
	}
	if input {
		_, _ = p.stdin.Poll(esys.POLLIN, 0) // takes what has come
	}
	ready := p.happened(subs)
	if len(ready) == 0 {
		left := time.Duration(math.MaxInt64)
		if first != nil {
			left = time.Until(first.due)
		}
		switch {
		case !input:
			p.sleep(left)
		case first == nil:
			_, _ = p.stdin.Poll(esys.POLLIN, -1)
		default:
			ms := min(max(0, left+time.Millisecond-1)/time.Millisecond, math.MaxInt32)
			_, _ = p.stdin.Poll(esys.POLLIN, int32(ms))
		}
		for ready = p.happened(subs); len(ready) == 0; ready = p.happened(subs) {
			time.Sleep(time.Microsecond) // it woke a little early
		}
	}
	// The events may lie where the subscriptions did, which are read by now.
	events, ok := mem.Read(out, n*eventSize)
	if !ok {
		return errnoFault
	}
	for i, s := range ready {
		e := events[i*eventSize:][:eventSize]
		clear(e)
		copy(e, s.userdata[:])
		e[10] = s.kind
		if s.kind == eventRead {
			binary.LittleEndian.PutUint64(e[16:], p.readable(s.fd))
		}
	}
	if !mem.WriteUint32Le(resultPtr, uint32(len(ready))) {
		return errnoFault
	}
	return errnoSuccess
}

// happened returns the subscriptions that have something to say.
func (p *process) happened(subs []subscription) []*subscription {
	var ready []*subscription
	now := time.Now()
	for i := range subs {
		s := &subs[i]
		switch {
		case s.kind == eventClock && (s.never || s.due.After(now)):
		case s.kind == eventRead && s.fd == 0 && !p.stdin.ready():
		default:
			ready = append(ready, s)
		}
	}
	return ready
}

// readable is how many bytes can be read at once, as far as that is known.
func (p *process) readable(fd uint32) uint64 {
	if fd == 0 {
		return uint64(len(p.stdin.data))
	}
	return 1
}
