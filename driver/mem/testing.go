package mem

import (
	"context"

	"github.com/axocoatl/isolation"
)

// Faults are hooks that run at the beginning of a call and may fail it, block
// it (until the ctx ends, or the test says so) or count it. A nil hook does
// nothing. An error of a hook is the call's error.
type Faults struct {
	Probe  func(context.Context) error
	Create func(ctx context.Context, id string, spec isolation.Spec) error
	Exec   func(ctx context.Context, id string, p isolation.ProcessSpec) error
	// Wait runs once the process ended; an error hides the Exit, and its
	// outcome is unknown.
	Wait   func(ctx context.Context, id string) error
	Delete func(ctx context.Context, id string) error
	Close  func() error
}

// SetFaults replaces the hooks, also those of sandboxes that exist.
func (d *Driver) SetFaults(f Faults) { d.faults.Store(&f) }

// Lose kills what carries the sandbox: its processes end as lost, and nothing
// runs in it any more. It reports whether there was such a sandbox.
func (d *Driver) Lose(id, detail string) bool {
	d.mu.Lock()
	s := d.sandboxes[id]
	d.mu.Unlock()
	if s == nil {
		return false
	}
	s.lose(detail)
	return true
}

// Crash ends the driver as SIGKILL ends a process: what is not detached is lost,
// nobody is told of anything any more, and another driver of the same Host may
// recover the rest.
func (d *Driver) Crash() {
	for _, s := range d.shut() {
		s.lose("its driver crashed")
	}
}

// Live tells how many sandboxes there are, and how many goroutines the driver
// runs for programs in them.
func (d *Driver) Live() (sandboxes, programs int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sandboxes), int(d.running.Load())
}
