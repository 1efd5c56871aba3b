// Package admission lets work of many tenants begin: no more at once than the host can
// have, each tenant in its turn, and none faster than it may. It says when trying again
// is worth while.
package admission

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// RetryError is an error that is of the moment.
type RetryError struct {
	Reason Reason
	After  time.Duration // when it is worth while to try again
	Err    error
}

// Reason says why somebody may not begin something now.
type Reason string

// The reasons. ReasonQuota and ReasonHost are for those who hold tenants, and all of them together,
// to what they may have at once.
const (
	ReasonRate     Reason = "rate"     // the tenant began too many lately
	ReasonFull     Reason = "full"     // too many wait
	ReasonDeadline Reason = "deadline" // its turn did not come in time
	ReasonCanceled Reason = "canceled" // its caller did not wait for it
	ReasonQuota    Reason = "quota"    // the tenant has all that it may have
	ReasonHost     Reason = "host"     // all tenants together have all that the host is for
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{ReasonRate, ReasonFull, ReasonDeadline, ReasonCanceled, ReasonQuota, ReasonHost}
}

// ReasonOf is the reason of an error of Enter or Take.
func ReasonOf(err error) Reason {
	var r *RetryError
	if errors.As(err, &r) {
		return r.Reason
	}
	return ReasonCanceled
}

func (e *RetryError) Error() string { return e.Err.Error() }
func (e *RetryError) Unwrap() error { return e.Err }

// RetryAfter is when it is worth while to try again.
func (e *RetryError) RetryAfter() time.Duration { return e.After }

// Queue has places, and those who wait for one. When one comes free it is that of the
// tenant with the fewest places, and of several such the one whose last turn was
// longest ago; within a tenant who came first goes first. When the queue is full, who
// came last of the tenant with the most waiting makes room for a tenant with fewer. It
// is safe for concurrent use.
type Queue struct {
	what  string // that is begun, for messages
	slots int
	bound int
	wait  time.Duration
	now   func() time.Time

	mu      sync.Mutex
	tenants map[string]*tenant // those that have or wait; guarded by mu
	taken   int                // guarded by mu
	waiting int                // guarded by mu
	turn    uint64             // guarded by mu
	held    time.Duration      // how long a place is held, lately; guarded by mu
}

type tenant struct {
	taken   int
	waiting []chan error // told nil with a place, or why there is none; room for one
	turn    uint64       // its last
}

// QueueConfig makes a Queue.
type QueueConfig struct {
	What  string // that is begun, in the plural, for messages
	Slots int    // places
	Bound int    // how many may wait, of all tenants together
	Wait  time.Duration
	Now   func() time.Time // nil: time.Now
}

// NewQueue makes a queue.
func NewQueue(c QueueConfig) *Queue {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Queue{what: c.What, slots: c.Slots, bound: c.Bound, wait: c.Wait, now: c.Now, tenants: map[string]*tenant{}}
}

// Counts are how many have a place, and how many wait for one.
func (q *Queue) Counts() (taken, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.taken, q.waiting
}

// Enter waits for a place, until ctx ends and at most as long as the queue has it.
// leave gives the place back; it may be called more than once.
func (q *Queue) Enter(ctx context.Context, name string) (leave func(), err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	told, err := q.join(name)
	if err != nil {
		return nil, err
	}
	if told != nil {
		timer := time.NewTimer(q.wait)
		defer timer.Stop()
		select {
		case err = <-told:
		case <-ctx.Done():
			err = q.quit(name, told, context.Cause(ctx))
		case <-timer.C:
			err = q.quit(name, told, nil)
		}
		if err != nil {
			return nil, err
		}
	}
	start := q.now()
	return sync.OnceFunc(func() { q.leave(name, q.now().Sub(start)) }), nil
}

// join takes a place, or returns what is told when there is one.
func (q *Queue) join(name string) (told chan error, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.tenants[name]
	if t == nil {
		t = &tenant{}
	}
	if q.taken >= q.slots {
		if q.waiting >= q.bound && !q.makeRoomLocked(len(t.waiting)+1) {
			return nil, q.fullLocked(ReasonFull, "%d %s are under way and %d wait, no more are taken", q.taken, q.what, q.waiting)
		}
		told = make(chan error, 1)
		t.waiting = append(t.waiting, told)
		q.waiting++
	} else {
		q.takeLocked(t)
	}
	q.tenants[name] = t
	return told, nil
}

func (q *Queue) takeLocked(t *tenant) {
	q.taken++
	t.taken++
	q.turn++
	t.turn = q.turn
}

// makeRoomLocked sends somebody away who has more waiting than n.
func (q *Queue) makeRoomLocked(n int) bool {
	var most *tenant
	for _, t := range q.tenants {
		if most == nil || len(t.waiting) > len(most.waiting) {
			most = t
		}
	}
	if most == nil || len(most.waiting) <= n {
		return false
	}
	last := len(most.waiting) - 1
	most.waiting[last] <- q.fullLocked(ReasonFull, "%d %s wait, and others of fewer come first", q.waiting, q.what)
	most.waiting = most.waiting[:last]
	q.waiting--
	return true
}

// fullLocked is the error of who gets no place.
func (q *Queue) fullLocked(why Reason, format string, args ...any) error {
	after := time.Second
	if q.slots > 0 {
		after = q.held * time.Duration(q.waiting+1) / time.Duration(q.slots)
	}
	return &RetryError{why, min(max(after, time.Second), time.Minute), fmt.Errorf(format+"; retry later: %w", append(args, isolation.ErrUnavailable)...)}
}

// quit is for who waits no longer. If he has got a place meanwhile, a nil cause keeps it.
func (q *Queue) quit(name string, told chan error, cause error) error {
	q.mu.Lock()
	t := q.tenants[name]
	for i := range t.waiting {
		if t.waiting[i] != told {
			continue
		}
		t.waiting = append(t.waiting[:i:i], t.waiting[i+1:]...)
		q.waiting--
		if cause == nil {
			cause = q.fullLocked(ReasonDeadline, "no place for one more of %d %s came free within %v", q.taken, q.what, q.wait)
		}
		q.dropLocked(name, t)
		q.mu.Unlock()
		return cause
	}
	q.mu.Unlock()
	err := <-told // it was told at the same moment
	if err == nil && cause != nil {
		q.leave(name, 0)
		return cause
	}
	return err
}

// leave gives a place back, to whose turn it is.
func (q *Queue) leave(name string, held time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held += (held - q.held) / 8
	q.taken--
	t := q.tenants[name]
	t.taken--
	q.dropLocked(name, t)
	for q.taken < q.slots && q.waiting > 0 {
		var next *tenant
		for _, t := range q.tenants {
			if len(t.waiting) > 0 && (next == nil || t.taken < next.taken || t.taken == next.taken && t.turn < next.turn) {
				next = t
			}
		}
		told := next.waiting[0]
		next.waiting = next.waiting[1:]
		q.waiting--
		q.takeLocked(next)
		told <- nil
	}
}

func (q *Queue) dropLocked(name string, t *tenant) {
	if t.taken == 0 && len(t.waiting) == 0 {
		delete(q.tenants, name)
	}
}
