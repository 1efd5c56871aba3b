package none

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// Driver is one of the two engines. It implements [isolation.Driver].
type Driver struct {
	eng   engine
	drain time.Duration

	mu        sync.Mutex // guards what follows; never held across a start or a kill
	closed    bool
	sandboxes map[string]*sandbox
	creating  sync.WaitGroup // Add only under mu and before closed
}

// engine is what differs between native programs and Go functions.
type engine interface {
	name() string
	// features are those that need no look at the host.
	features() isolation.Features
	probe(ctx context.Context, f *isolation.Features) error
	// check refuses what the engine does not implement.
	check(spec isolation.Spec) error
	checkProcess(p isolation.ProcessSpec) error
	create(ctx context.Context, id string, spec isolation.Spec) (place, error)
	close() error
}

// place is an engine's side of a sandbox.
type place interface {
	// start makes the program of p ready, or starts it, and sets p's streams.
	start(ctx context.Context, p *process) (task, error)
	// kill ends everything, also what nobody waits for.
	kill(ctx context.Context) error
	// remove takes the place away. It is called when no process is left that
	// somebody waits for, and again after an error.
	remove(ctx context.Context) error
}

// task is an engine's side of a process.
type task interface {
	// begin is called once, when the process knows its task.
	begin()
	pid() int
	signal(sig isolation.Signal) error
	// kill ends the program and what it started, and does not wait for it.
	kill()
	// cpu is the time used by now, by the program and what it started.
	cpu() time.Duration
	// wait returns when the program ended, or cannot be ended.
	wait() status
	// settle is called once after wait, when no output is delivered any more.
	settle(st *status)
}

// status is how a program ended, as its engine saw it.
type status struct {
	code   int
	signal isolation.Signal
	forced bool // the kill by the driver is what ended it
	lost   bool // how it ended is not known
	detail string
	ended  time.Time

	oom       int64 // kills by the kernel for want of memory
	cpu       time.Duration
	peak      int64
	read      int64
	written   int64
	hits      []isolation.LimitHit
	survivors int
}

func newDriver(eng engine, drain time.Duration) *Driver {
	return &Driver{eng: eng, drain: drain, sandboxes: map[string]*sandbox{}}
}

// Name returns "process" or "func".
func (d *Driver) Name() string { return d.eng.name() }

// Probe finds out what works here by running it.
func (d *Driver) Probe(ctx context.Context) (isolation.Features, error) {
	f := d.eng.features()
	if err := ctx.Err(); err != nil {
		return f, d.fail("probe", "", "", err)
	}
	if err := d.eng.probe(ctx, &f); err != nil {
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
	return sb, nil
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
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if err := d.eng.check(spec); err != nil {
		return nil, err
	}
	sb := &sandbox{d: d, id: id, created: begin, live: map[string]*process{}, known: map[string]bool{}}
	if err := d.reserve(sb); err != nil {
		return nil, err
	}
	defer d.creating.Done()
	pl, err := d.eng.create(ctx, id, spec)
	if err == nil && ctx.Err() != nil {
		err = errors.Join(ctx.Err(), pl.remove(context.WithoutCancel(ctx)))
	}
	if err != nil {
		d.forget(id)
		return nil, err
	}
	sb.place = pl
	sb.createTook = time.Since(begin)
	return sb, nil
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

// Close deletes every sandbox. What could not be deleted is in the error, and
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
		wg.Go(func() { errs[i] = sb.Delete(context.Background()) })
	}
	wg.Wait()
	return errors.Join(append(errs, d.eng.close())...)
}

// fail says what was being done, once.
func (d *Driver) fail(op, id string, o isolation.Outcome, err error) error {
	return &isolation.Error{Op: op, Driver: d.Name(), ID: id, Outcome: o, Err: err}
}

// checkSpec refuses what neither engine has.
func checkSpec(spec isolation.Spec) error {
	const boundary = "a tier with a boundary (wasm, oci, microvm)"
	switch {
	case spec.Requirement != isolation.NativeTrusted:
		return unsupported("requirement "+spec.Requirement.String(), boundary+": tier none runs trusted built-ins only")
	case !spec.Module.IsZero():
		return unsupported("a module", "the wasm tier")
	case !spec.Root.IsZero():
		return unsupported("a root file system", "the oci or microvm tier")
	case len(spec.Mounts) > 0:
		return unsupported("mounts", boundary)
	case spec.Hostname != "":
		return unsupported("a hostname", "the oci or microvm tier")
	case spec.Profile == "session":
		return unsupported("profile session", "the oci or microvm tier")
	case spec.Language != "":
		return unsupported("language "+spec.Language, boundary)
	case spec.Resources.DiskBytes > 0:
		return unsupported("disk limit", "a file system of the sandbox's own (oci, microvm)")
	}
	return nil
}

func unsupported(feature, need string) error {
	return &isolation.UnsupportedError{Feature: feature, Need: need}
}
