package pool

import (
	"context"
	"time"

	"github.com/axocoatl/isolation"
)

// removeTimeout bounds one attempt to delete a sandbox.
const removeTimeout = 30 * time.Second

// removeTries is how often a sandbox is deleted before it is left to the
// driver's Close, which deletes what is there.
const removeTries = 5

// remove deletes a sandbox behind the caller's back. It waits only when many
// are under way.
func (p *Pool) remove(sb isolation.Sandbox) {
	p.removals <- struct{}{}
	p.behind(func() {
		defer func() { <-p.removals }()
		var err error
		for try := range removeTries {
			ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
			err = sb.Delete(ctx)
			cancel()
			if err == nil {
				return
			}
			select {
			case <-time.After(backOff(try + 1)):
			case <-p.ctx.Done():
			}
		}
		p.count(func(s *Stats) { s.Stuck++ })
		p.cfg.Logger.Error("a sandbox could not be removed; closing the driver tries again", "sandbox", sb.ID(), "error", err)
	})
}

// behind runs f in a goroutine that Close waits for; once the pool is closed,
// in the caller's.
func (p *Pool) behind(f func()) {
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.removing.Go(f)
	}
	p.mu.Unlock()
	if closed {
		f()
	}
}
