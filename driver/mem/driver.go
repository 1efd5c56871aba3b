package mem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/axocoatl/isolation"
)

// Driver runs Go functions. Make it with New.
type Driver struct {
	name     string
	features isolation.Features
	programs map[string]Program
	retain   int64
	faults   atomic.Pointer[Faults]
	running  atomic.Int64 // goroutines of programs

	mu        sync.Mutex
	sandboxes map[string]*sandbox // guarded by mu; nil: being made
	closed    bool                // guarded by mu
	host      *Host
	gone      chan struct{} // closed when the driver has let go of what is detached
}

var _ isolation.Driver = (*Driver)(nil)

// New makes a driver. It panics when c.Features tells of what mem has not.
func New(c Config) *Driver {
	if c.Name == "" {
		c.Name = "mem"
	}
	if c.Retain <= 0 {
		c.Retain = 64 << 10
	}
	d := &Driver{
		name: c.Name, features: c.features(), programs: c.programs(), retain: int64(c.Retain),
		sandboxes: map[string]*sandbox{}, host: c.Host, gone: make(chan struct{}),
	}
	if d.host == nil {
		d.host = NewHost()
	}
	d.faults.Store(&Faults{})
	return d
}

// Unwrap lets isolation.As find what the features tell.
func (d *Driver) Unwrap() any {
	var v any
	if slices.Contains(d.features.Abilities, isolation.AbilityRestore) {
		v = restoring{d, v}
	}
	if slices.Contains(d.features.Abilities, isolation.AbilityRecover) {
		v = recovering{d, v}
	}
	return v
}

// Name implements isolation.Driver.
func (d *Driver) Name() string { return d.name }

// Probe tells the features that the driver was made with.
func (d *Driver) Probe(ctx context.Context) (isolation.Features, error) {
	err := context.Cause(ctx)
	if hook := d.faults.Load().Probe; err == nil && hook != nil {
		err = hook(ctx)
	}
	if err != nil {
		static := isolation.Features{Tier: d.features.Tier, Engine: d.features.Engine, Runs: slices.Clone(d.features.Runs)}
		return static, &isolation.Error{Op: "probe", Driver: d.name, Err: err}
	}
	return clone(d.features), nil
}

// Create implements isolation.Driver.
func (d *Driver) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	s, err := d.create(ctx, id, spec)
	if err != nil {
		return nil, &isolation.Error{Op: "create", Driver: d.name, ID: id, Outcome: isolation.NotStarted, Err: err}
	}
	return s.wear(d), nil
}

func (d *Driver) create(ctx context.Context, id string, spec isolation.Spec) (_ *sandbox, err error) {
	began := time.Now()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	if err := d.check(spec); err != nil {
		return nil, err
	}
	if err := d.reserve(id); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.forget(id, nil)
		}
	}()
	if hook := d.faults.Load().Create; hook != nil {
		if err := hook(ctx, id, spec); err != nil {
			return nil, err
		}
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	s := newSandbox(d, id, spec, began)
	if spec.Detached {
		if err := d.host.add(s); err != nil {
			s.cancel()
			return nil, err
		}
	}
	if err := d.enter(s); err != nil {
		d.host.remove(s)
		s.cancel()
		return nil, err
	}
	return s, nil
}

// enter makes a sandbox the driver's.
func (d *Driver) enter(s *sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	d.sandboxes[s.id] = s
	return nil
}

var errClosed = fmt.Errorf("driver is closed: %w", isolation.ErrFailedPrecondition)

// check refuses what the features do not tell.
func (d *Driver) check(spec isolation.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if !d.features.CanRun(spec.Requirement) {
		return &isolation.UnsupportedError{Feature: spec.Requirement.String()}
	}
	if lang := language(spec); d.features.Interpreted && lang != "" && !slices.Contains(d.features.Languages, lang) {
		return &isolation.UnsupportedError{Feature: lang, Need: "an interpreter for it"}
	}
	if spec.Func != "" && d.programs[spec.Func] == nil {
		return fmt.Errorf("function %q is not registered: %w", spec.Func, isolation.ErrNotFound)
	}
	return d.checkUsed(spec, isolation.ProcessSpec{})
}

func language(spec isolation.Spec) string {
	switch spec.Requirement {
	case isolation.Python:
		return "python"
	case isolation.Shell:
		return "shell"
	case isolation.Arbitrary:
		return spec.Language
	}
	return ""
}

func (d *Driver) checkUsed(spec isolation.Spec, p isolation.ProcessSpec) error {
	for _, o := range isolation.OptionsOf(spec, p) {
		if !d.features.Has(o) {
			return &isolation.UnsupportedError{Feature: string(o)}
		}
	}
	for _, l := range isolation.LimitsOf(spec, p) {
		if e := d.features.Enforcement(l); !e.Enforced {
			return &isolation.UnsupportedError{Feature: string(l) + " limit", Need: e.Reason}
		}
	}
	return nil
}

func (d *Driver) reserve(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errClosed
	}
	if _, ok := d.sandboxes[id]; ok {
		return isolation.ErrAlreadyExists
	}
	d.sandboxes[id] = nil
	return nil
}

// forget frees id if it is s's: by the time that a second Delete comes by, it
// may be another's.
func (d *Driver) forget(id string, s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if have, ok := d.sandboxes[id]; ok && have == s {
		delete(d.sandboxes, id)
	}
}

// Close deletes every sandbox that is not detached, and lets go of the others.
func (d *Driver) Close() error {
	live := d.shut()
	var errs []error
	if hook := d.faults.Load().Close; hook != nil {
		errs = append(errs, hook())
	}
	for _, s := range live {
		s.end()
	}
	for _, s := range live {
		errs = append(errs, s.delete(context.Background()))
	}
	return errors.Join(errs...)
}

// shut has nothing begin any more, lets go of the detached sandboxes and returns
// the others.
func (d *Driver) shut() (live []*sandbox) {
	var detached []*sandbox
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		close(d.gone)
	}
	for id, s := range d.sandboxes {
		switch {
		case s == nil:
		case s.spec.Detached:
			detached = append(detached, s)
			delete(d.sandboxes, id)
		default:
			live = append(live, s)
		}
	}
	d.mu.Unlock()
	for _, s := range detached {
		s.letGo()
	}
	return live
}
