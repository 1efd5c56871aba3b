package engine

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// admission bounds the runs that are under way and those that wait.
type admission struct {
	slots   chan struct{}
	waiting *atomic.Int64
	queue   int64
}

func newAdmission(runs, queue int) admission {
	return admission{make(chan struct{}, runs), new(atomic.Int64), int64(queue)}
}

// enter waits for a place, for at most limit. First come, first served.
func (a admission) enter(ctx context.Context, limit time.Duration) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	select {
	case a.slots <- struct{}{}:
		return nil
	default:
	}
	if a.waiting.Add(1) > a.queue {
		a.waiting.Add(-1)
		return fmt.Errorf("%d runs are under way and %d wait, no more are taken; retry later: %w", cap(a.slots), a.queue, isolation.ErrResourceExhausted)
	}
	defer a.waiting.Add(-1)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("no place for a run came free within %v; retry later: %w", limit, isolation.ErrResourceExhausted)
	}
}

func (a admission) leave() { <-a.slots }
