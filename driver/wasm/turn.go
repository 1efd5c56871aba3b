package wasm

import (
	"context"
	"fmt"
	"sync"

	"github.com/axocoatl/isolation/guest/wire"
)

// turn is a process's share in the slots: whether it holds one of the places to
// compute. It begins with one.
type turn struct {
	slots slots
	grant func() // tells the worker to go on

	mu    sync.Mutex
	state turnState     // guarded by mu
	over  chan struct{} // guarded by mu; made when somebody waits for a slot, closed when nobody does any more
}

type turnState int

const (
	turnHeld  turnState = iota // it computes
	turnFree                   // it is blocked
	turnAsked                  // it could go on, and waits for a slot
	turnGiven                  // it has a slot, and has not asked yet
	turnEnded
)

// waits takes the slot from a process that is blocked.
func (t *turn) waits() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != turnHeld {
		return fmt.Errorf("%w: WAIT without a slot", wire.ErrProtocol)
	}
	t.state = turnFree
	t.slots.release()
	return nil
}

// wantsRun gets a slot for a process that can go on.
func (t *turn) wantsRun() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.state == turnGiven, t.state == turnFree && t.slots.tryAcquire():
		t.state = turnHeld
		t.grant()
	case t.state == turnFree:
		t.state, t.over = turnAsked, make(chan struct{})
		go t.resume(t.over)
	default:
		return fmt.Errorf("%w: RUN with a slot", wire.ErrProtocol)
	}
	return nil
}

// resume waits for a slot and lets the process go on.
func (t *turn) resume(over <-chan struct{}) {
	if t.slots.acquire(context.Background(), over) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != turnAsked {
		t.slots.release()
		return
	}
	t.state = turnHeld
	t.grant()
}

// give hands over a slot that the caller has.
func (t *turn) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch t.state {
	case turnFree:
		t.state = turnGiven
	case turnAsked:
		close(t.over)
		t.state = turnHeld
		t.grant()
	default:
		t.slots.release()
	}
}

// end gives back what is held.
func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch t.state {
	case turnHeld, turnGiven:
		t.slots.release()
	case turnAsked:
		close(t.over)
	}
	t.state = turnEnded
}
