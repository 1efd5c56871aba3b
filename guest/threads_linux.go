package guest

import (
	"runtime"
	"sync"
)

// threads are threads of this process that are not like the others: in a machine
// they are in the programs' mount namespace, and for a while one may have the
// credentials of a user. Go code runs on them as on any, but starts no
// goroutines that would inherit anything: what a thread has is its own.
type threads struct {
	enter func() error // what each does first; nil: nothing

	mu    sync.Mutex
	calls chan func(error)
	count int
}

// maxThreads bounds what runs at a time; more wait.
const maxThreads = 4

// do runs f on one of the threads.
func (t *threads) do(f func() error) error {
	done := make(chan error, 1)
	call := func(broken error) {
		if broken != nil {
			done <- broken
			return
		}
		done <- f()
	}
	t.mu.Lock()
	if t.calls == nil {
		t.calls = make(chan func(error))
	}
	calls := t.calls
	t.mu.Unlock()
	select {
	case calls <- call:
	default:
		t.grow()
		calls <- call
	}
	return <-done
}

func (t *threads) grow() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count < maxThreads {
		t.count++
		go t.run(t.calls)
	}
}

func (t *threads) run(calls <-chan func(error)) {
	runtime.LockOSThread() // never unlocked: no other goroutine gets this thread
	var broken error
	if t.enter != nil {
		broken = t.enter()
	}
	for call := range calls {
		call(broken)
	}
}

// inside runs f where names are the programs'.
func (g *guest) inside(f func() error) error {
	if g.vm == nil {
		return f()
	}
	return g.lookers.do(f)
}
