package egress

import (
	"context"
	"sync"
	"time"
)

// pace lets so many begin at once, and then one after the other: a program that asks
// without end fills neither log nor history faster.
type pace struct {
	burst int
	every time.Duration

	mu   sync.Mutex
	next time.Time // when the next one would begin, if none could at once; guarded by mu
}

// wait waits for its turn.
func (p *pace) wait(ctx context.Context) error {
	now := time.Now()
	p.mu.Lock()
	if least := now.Add(-time.Duration(p.burst) * p.every); p.next.Before(least) {
		p.next = least
	}
	p.next = p.next.Add(p.every)
	d := p.next.Sub(now)
	p.mu.Unlock()
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
