package pool

import (
	"time"

	"github.com/axocoatl/isolation"
)

// Stats counts what a pool did since it was made, and what it has now.
type Stats struct {
	Hits   int64 `json:"hits"`   // handed out from a shelf
	Misses int64 `json:"misses"` // made while the caller waited
	Made   int64 `json:"made"`   // ahead
	// MakeTime is how long the making of those took, all together.
	MakeTime time.Duration `json:"-"`
	Failures int64         `json:"failures"` // of making ahead
	Aged     int64         `json:"aged"`     // removed for their age
	Spoiled  int64         `json:"spoiled"`  // ended while they stood ready
	Stuck    int64         `json:"stuck"`    // could not be removed; see Pool.Close

	Idle     int          `json:"idle"`
	Making   int          `json:"making"`
	Removing int          `json:"removing"`
	Out      int          `json:"out"` // handed out and not deleted
	Shelves  []ShelfStats `json:"shelves"`
}

// ShelfStats is what one shelf has now.
type ShelfStats struct {
	Spec    isolation.Spec `json:"spec"`
	Learned bool           `json:"learned,omitempty"`
	Size    int            `json:"size"`
	Idle    int            `json:"idle"`
	Making  int            `json:"making"`
	Oldest  time.Duration  `json:"-"`               // age of the oldest that stands ready
	Error   string         `json:"error,omitempty"` // of the last attempt to make one, if it failed
}

// Stats implements no interface: it is for metrics and for people.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.stats
	st.Out, st.Removing = len(p.out), len(p.removals)
	st.Idle, st.Making = p.totalsLocked()
	st.Shelves = make([]ShelfStats, 0, len(p.shelves))
	for _, s := range p.byNeedLocked() {
		x := ShelfStats{Spec: s.template.Spec, Learned: !s.fixed, Size: s.template.Size, Idle: len(s.idle), Making: s.making}
		if len(s.idle) > 0 {
			x.Oldest = time.Since(s.idle[0].born)
		}
		if s.err != nil {
			x.Error = s.err.Error()
		}
		st.Shelves = append(st.Shelves, x)
	}
	return st
}

func (p *Pool) count(f func(*Stats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.stats)
}
