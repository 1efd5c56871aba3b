package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/engine"
)

// Config makes a Driver.
type Config struct {
	// Address of the daemon: unix:///PATH, http://HOST:PORT or https://HOST.
	Address string
	// Key is a key of the daemon's.
	Key string
	// Tenant is whose sandboxes, runs and snapshots are asked about with an admin's key;
	// "*" lists those of all; empty: the key's own.
	Tenant string
	// Tier and Engine are asked for if they are set; else the daemon chooses for
	// each Spec.
	Tier   *isolation.Tier
	Engine string
	// Check is asked about each connection on a unix socket before anything is sent on
	// it; nil: all will do.
	Check func(net.Conn) error
	// MinTier, AllowEmulated and AllowUnenforced are as in engine.Request.
	MinTier                        *isolation.Tier
	AllowEmulated, AllowUnenforced bool
	// Egress is what the sandboxes may reach of the network.
	Egress engine.Egress
}

// Driver makes sandboxes at a daemon.
type Driver struct {
	config Config
	remote *remote

	mu        sync.Mutex
	known     isolation.Features  // of the last probe; guarded by mu
	sandboxes map[string]*sandbox // made here, and not deleted; guarded by mu
	opened    []*sandbox          // by Open; guarded by mu
	closed    bool                // guarded by mu
	running   sync.WaitGroup      // the goroutines of processes and sandboxes, and calls of Create
	ctx       context.Context     // ends with Close: for Creates
	end       context.CancelCauseFunc
}

var _ isolation.Driver = (*Driver)(nil)

// New makes a driver. The daemon is not asked before it is needed.
func New(c Config) (*Driver, error) {
	r, err := newRemote(c)
	if err != nil {
		return nil, err
	}
	d := &Driver{config: c, remote: r, sandboxes: map[string]*sandbox{}}
	d.ctx, d.end = context.WithCancelCause(context.Background())
	return d, nil
}

// Name implements isolation.Driver.
func (d *Driver) Name() string {
	if d.config.Engine != "" {
		return d.config.Engine
	}
	return "remote"
}

// abilities are those that can be had over the wire.
var abilities = []string{
	isolation.AbilityAttach, isolation.AbilityPause, isolation.AbilityFiles, isolation.AbilityWatch, isolation.AbilityStats, isolation.AbilityResize,
	isolation.AbilityPorts,
}

// Probe implements isolation.Driver: the daemon probes its engines, and the first
// that works is what this driver is, of the tier and name that it is to have.
func (d *Driver) Probe(ctx context.Context) (isolation.Features, error) {
	var t api.Tiers
	q := url.Values{}
	if d.config.Engine != "" {
		q.Set("engine", d.config.Engine)
	}
	if err := d.remote.call(ctx, "GET", "/v1/tiers", q, nil, nil, &t); err != nil {
		return d.static(), d.fail("probe", "", "", err)
	}
	var reasons []error
	for _, e := range t.Engines {
		switch {
		case d.config.Tier != nil && e.Tier != *d.config.Tier, d.config.Engine != "" && e.Engine != d.config.Engine:
			continue
		case e.Tier == isolation.TierNone:
			continue // nobody gets it over the wire
		case !e.OK:
			reasons = append(reasons, fmt.Errorf("%s: %s", e.Engine, e.Reason))
			continue
		}
		f := features(e.Features)
		d.mu.Lock()
		d.known = f
		d.mu.Unlock()
		return f, nil
	}
	reasons = append(reasons, isolation.ErrUnavailable)
	return d.static(), d.fail("probe", "", "", fmt.Errorf("no engine of the daemon's works: %w", errors.Join(reasons...)))
}

// static is what is known without asking the daemon, or was told by it last.
func (d *Driver) static() isolation.Features {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := isolation.Features{Tier: d.known.Tier, Engine: d.Name(), Runs: d.known.Runs}
	if d.config.Tier != nil {
		f.Tier = *d.config.Tier
	}
	return f
}

// features are what is left of an engine's at the end of the wire.
func features(f isolation.Features) isolation.Features {
	f.Options = slices.DeleteFunc(slices.Clone(f.Options), func(o isolation.Option) bool {
		return o == isolation.OptionMounts || o == isolation.OptionRootPath
	})
	f.Functions = nil
	f.Runs = slices.DeleteFunc(slices.Clone(f.Runs), func(r isolation.Requirement) bool { return r == isolation.NativeTrusted })
	had := f.Abilities
	f.Abilities = nil
	for _, a := range abilities {
		// The daemon keeps output itself.
		if a == isolation.AbilityAttach || slices.Contains(had, a) {
			f.Abilities = append(f.Abilities, a)
		}
	}
	return f
}

func (d *Driver) fail(op, id string, o isolation.Outcome, err error) error {
	return &isolation.Error{Op: op, Driver: d.Name(), ID: id, Outcome: o, Err: err}
}

// Create implements isolation.Driver.
func (d *Driver) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	s, err := d.create(ctx, id, spec)
	if err != nil {
		return nil, d.fail("create", id, isolation.NotStarted, err)
	}
	return shown{s, s.has}, nil
}

var errClosed = fmt.Errorf("driver is closed: %w", isolation.ErrFailedPrecondition)

func (d *Driver) create(ctx context.Context, id string, spec isolation.Spec) (*sandbox, error) {
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	switch {
	case spec.Requirement == isolation.NativeTrusted || spec.Func != "":
		return nil, &isolation.UnsupportedError{Feature: "a program without isolation over the API", Need: "a requirement that isolates"}
	case len(spec.Mounts) > 0:
		return nil, &isolation.UnsupportedError{Feature: "a directory of the host over the API", Need: "files that are copied into the sandbox"}
	case spec.Root.Path != "":
		return nil, &isolation.UnsupportedError{Feature: "a root directory of the host over the API", Need: "an image"}
	}
	if spec.Module.Path != "" {
		b, err := os.ReadFile(spec.Module.Path)
		if err != nil {
			return nil, fmt.Errorf("module: %w: %w", err, isolation.ErrNotFound)
		}
		spec.Module.Path, spec.Module.Data = "", b
	}
	d.mu.Lock()
	closed, there := d.closed, d.sandboxes[id] != nil
	if !closed && !there {
		d.sandboxes[id] = nil // reserved
		d.running.Add(1)
	}
	d.mu.Unlock()
	switch {
	case closed:
		return nil, errClosed
	case there:
		return nil, fmt.Errorf("sandbox %s: %w", id, isolation.ErrAlreadyExists)
	}
	defer d.running.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.ctx, func() { cancel(errClosed) })()
	c := d.config
	in := api.Create{
		ID: id, Spec: spec, Tier: c.Tier, Engine: c.Engine, MinTier: c.MinTier, AllowEmulated: c.AllowEmulated, AllowUnenforced: c.AllowUnenforced, Egress: c.Egress,
		Ephemeral: !spec.Detached,
	}
	if !spec.Detached {
		in.HoldMS = holdFor.Milliseconds()
	}
	var out api.Sandbox
	err := d.remote.call(ctx, "POST", "/v1/sandboxes", nil, nil, in, &out)
	s := d.sandbox(id, out, spec.Detached)
	d.mu.Lock()
	if err == nil && !d.closed {
		d.sandboxes[id] = s
		if !spec.Detached {
			d.running.Go(s.hold)
		}
		d.mu.Unlock()
		return s, nil
	}
	delete(d.sandboxes, id)
	d.mu.Unlock()
	if err == nil {
		err = errClosed
	}
	// An answer that did not come may have been of a sandbox that is there.
	if isolation.OutcomeOf(err) != isolation.NotStarted && !errors.Is(err, isolation.ErrAlreadyExists) {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if derr := s.delete(undo); derr != nil {
			err = errors.Join(err, derr)
		}
	}
	return nil, err
}

// Open returns a sandbox of the daemon's that is there already, made by whomever
// of the same tenant. Close leaves it alone.
func (d *Driver) Open(ctx context.Context, id string) (isolation.Sandbox, error) {
	if err := isolation.ValidateID(id); err != nil {
		return nil, d.fail("open", id, "", err)
	}
	var out api.Sandbox
	if err := d.remote.call(ctx, "GET", "/v1/sandboxes/"+id, nil, nil, nil, &out); err != nil {
		return nil, d.fail("open", id, "", err)
	}
	s := d.sandbox(id, out, true)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, d.fail("open", id, "", errClosed)
	}
	d.opened = append(d.opened, s)
	return shown{s, s.has}, nil
}

func (d *Driver) sandbox(id string, told api.Sandbox, detached bool) *sandbox {
	return &sandbox{d: d, id: id, instance: told.Instance, has: told.Abilities, path: "/v1/sandboxes/" + id, detached: detached, live: map[*process]struct{}{}, giving: map[string]struct{}{}, let: make(chan struct{})}
}

// Close implements isolation.Driver.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	d.end(errClosed)
	mine := d.opened
	d.opened = nil
	for _, s := range d.sandboxes {
		if s != nil {
			mine = append(mine, s)
		}
	}
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	var errs []error
	for _, s := range mine {
		if s.detached {
			s.letGo(errLetGo)
			d.forget(s)
		} else if err := s.Delete(ctx); err != nil {
			errs = append(errs, err)
			s.unhold() // the daemon deletes it then
		}
	}
	d.running.Wait()
	d.remote.close()
	return errors.Join(errs...)
}

var errLetGo = fmt.Errorf("the driver has let the sandbox go: %w", isolation.ErrUnavailable)

func (d *Driver) forget(s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sandboxes[s.id] == s {
		delete(d.sandboxes, s.id)
	}
}
