package proc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// Driver is an engine with the book-keeping that all share. It implements
// [isolation.Driver].
type Driver struct {
	eng   Engine
	drain time.Duration

	mu        sync.Mutex // guards what follows; never held across a start or a kill
	closed    bool
	sandboxes map[string]*sandbox
	creating  sync.WaitGroup // Add only under mu and before closed
}

// Engine is what differs between native programs and Go functions.
type Engine interface {
	Name() string
	// Features are those that need no look at the host.
	Features() isolation.Features
	Probe(ctx context.Context, f *isolation.Features) error
	// Check refuses what the engine does not implement.
	Check(spec isolation.Spec) error
	CheckProcess(p isolation.ProcessSpec) error
	Create(ctx context.Context, id string, spec isolation.Spec) (Place, error)
	Close() error
}

// Place is an engine's side of a sandbox. One that may be lost while the engine
// lives also has a method Lost() bool.
type Place interface {
	// Start makes the program of p ready, or starts it, and sets p's streams Out and Err.
	Start(ctx context.Context, p *Process) (Task, error)
	// Kill ends everything, also what nobody waits for.
	Kill(ctx context.Context) error
	// Remove takes the place away. It is called when no process is left that
	// somebody waits for, and again after an error.
	Remove(ctx context.Context) error
}

// Preparer is a Place that can start an interpreter ahead; see
// [isolation.Preparer].
type Preparer interface {
	Prepare(ctx context.Context, language string) error
}

// Pauser is a Place that can be stopped and go on; see [isolation.Pauser]. Calls
// come one at a time, and each changes something. Meanwhile its tasks take
// Signal and Kill all the same, and CPU may be asked.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Filer is a Place whose files can be reached; see [isolation.Files],
// [isolation.Directories] and [isolation.Watcher].
type Filer interface {
	Files() Files // nil: not those of this place
}

// Files are the abilities of a place with files.
type Files interface {
	isolation.Files
	isolation.Directories
	isolation.Watcher
}

// Porter is a Place whose network's ports can be reached; see
// [isolation.PortDialer] and [isolation.PortListener].
type Porter interface {
	Ports() Ports
}

// Ports are the abilities of a place with ports.
type Ports interface {
	isolation.PortDialer
	isolation.PortListener
}

// Metered is a Place that tells what its programs use; see [isolation.Stats].
type Metered interface {
	Meter() Meter
}

// Meter reads what is used; nil: that cannot be told of this place.
type Meter func(ctx context.Context) (isolation.Usage, error)

// Resizer is a Task with a terminal whose size can be set.
type Resizer interface {
	Resize(ctx context.Context, size isolation.TerminalSize) error
}

// Task is an engine's side of a process.
type Task interface {
	// Begin is called once, when the process knows its task.
	Begin()
	PID() int
	Signal(sig isolation.Signal) error
	// Kill ends the program and what it started, and does not wait for it.
	Kill()
	// CPU is the time used by now, by the program and what it started.
	CPU() time.Duration
	// Wait returns when the program ended, or cannot be ended.
	Wait() Status
	// Settle is called once after wait, when no output is delivered any more.
	Settle(st *Status)
}

// Status is how a program ended, as its engine saw it.
type Status struct {
	Code   int
	Signal isolation.Signal
	Forced bool // the kill by the driver is what ended it
	Lost   bool // how it ended is not known
	Detail string
	Ended  time.Time

	OOM       int64 // kills by the kernel for want of memory
	CPU       time.Duration
	Peak      int64
	Read      int64
	Written   int64
	Hits      []isolation.LimitHit
	Survivors int
}

// New returns the driver of an engine. After a process ended its output may
// still come for the time of drain.
func New(eng Engine, drain time.Duration) *Driver {
	return &Driver{eng: eng, drain: drain, sandboxes: map[string]*sandbox{}}
}

// Name returns the engine's.
func (d *Driver) Name() string { return d.eng.Name() }

// Probe finds out what works here by running it.
func (d *Driver) Probe(ctx context.Context) (isolation.Features, error) {
	f := d.eng.Features()
	if err := ctx.Err(); err != nil {
		return f, d.fail("probe", "", "", err)
	}
	if err := d.eng.Probe(ctx, &f); err != nil {
		return f, d.fail("probe", "", "", err)
	}
	return f, nil
}

// Create makes a sandbox.
func (d *Driver) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	sb, err := d.create(ctx, id, spec)
	if err != nil {
		return nil, d.fail("create", id, isolation.NotStarted, err)
	}
	return sb.wear(), nil
}

// wear wraps a sandbox in the abilities of its place.
func (s *sandbox) wear() isolation.Sandbox {
	var out isolation.Sandbox = s
	if p, ok := s.place.(Preparer); ok {
		out = preparing{out, s, p}
	}
	if p, ok := s.place.(Pauser); ok {
		out = pausing{out, s, p}
	}
	if p, ok := s.place.(Snapshotter); ok {
		out = snapshotting{out, s, p}
	}
	if p, ok := s.place.(Forker); ok {
		out = forking{out, s, p}
	}
	if f, ok := s.place.(Filer); ok {
		if files := f.Files(); files != nil {
			out = filing{out, s, files}
		}
	}
	if m, ok := s.place.(Metered); ok {
		if read := m.Meter(); read != nil {
			out = measuring{out, s, read}
		}
	}
	if p, ok := s.place.(Porter); ok {
		out = porting{out, s, p.Ports()}
	}
	if _, ok := s.place.(Attachable); ok || s.spec.Detached {
		out = attaching{out, s}
	}
	return out
}

func (d *Driver) create(ctx context.Context, id string, spec isolation.Spec) (*sandbox, error) {
	begin := time.Now()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if spec.Detached && !d.eng.Features().Has(isolation.OptionDetached) {
		return nil, Unsupported("a sandbox that outlives its maker", "the oci tier")
	}
	if err := d.eng.Check(spec); err != nil {
		return nil, err
	}
	sb := newSandbox(d, id, spec, begin)
	if err := d.reserve(sb); err != nil {
		return nil, err
	}
	defer d.creating.Done()
	pl, err := d.eng.Create(ctx, id, spec)
	if err == nil && ctx.Err() != nil {
		err = errors.Join(ctx.Err(), pl.Remove(context.WithoutCancel(ctx)))
	}
	if err != nil {
		d.forget(id)
		return nil, err
	}
	sb.place = pl
	sb.createTook = time.Since(begin)
	return sb, nil
}

func newSandbox(d *Driver, id string, spec isolation.Spec, created time.Time) *sandbox {
	return &sandbox{
		d: d, id: id, spec: spec, created: created, live: map[string]*Process{}, known: map[string]bool{}, turn: make(chan struct{}, 1),
	}
}

func (d *Driver) reserve(sb *sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("the driver is closed: %w", isolation.ErrFailedPrecondition)
	}
	if d.sandboxes[sb.id] != nil {
		return fmt.Errorf("sandbox %s: %w", sb.id, isolation.ErrAlreadyExists)
	}
	d.sandboxes[sb.id] = sb
	d.creating.Add(1)
	return nil
}

func (d *Driver) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sandboxes, id)
}

// Close deletes every sandbox, and leaves those that are detached. What could not be deleted is in the error, and
// is tried again by the next Close.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.creating.Wait()

	d.mu.Lock()
	all := make([]*sandbox, 0, len(d.sandboxes))
	for _, sb := range d.sandboxes {
		all = append(all, sb)
	}
	d.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, sb := range all {
		wg.Go(func() {
			if sb.spec.Detached {
				errs[i] = sb.leave()
			} else {
				errs[i] = sb.Delete(context.Background())
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, d.eng.Close())...)
}

// fail says what was being done, once.
func (d *Driver) fail(op, id string, o isolation.Outcome, err error) error {
	return &isolation.Error{Op: op, Driver: d.Name(), ID: id, Outcome: o, Err: err}
}

// Unsupported says that a feature is not there, and what has it.
func Unsupported(feature, need string) error {
	return &isolation.UnsupportedError{Feature: feature, Need: need}
}
