// Package wasm is the WASM tier: WebAssembly modules (WASI preview 1 commands,
// and with Wasmtime WASI preview 2 components) in jailed worker processes. A
// module never runs in the calling process: so a deadline is a kill, a module that spins freezes nothing, and a fault of the
// engine meets a second wall. See PROTOCOL.md of guest/wire for how the two
// sides speak, and docs/SECURITY-MODEL.md for what the walls stop.
package wasm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/axocoatl/isolation"
)

var errClosed = fmt.Errorf("driver is closed: %w", isolation.ErrFailedPrecondition)

// Driver runs modules with one engine.
type Driver struct {
	engine   description
	config   Config
	launcher *launcher
	cache    *cache
	tempDir  string // the cache's, if it is to be removed
	compiler *compiler
	pool     *pool
	slots    slots
	digests  digests

	mu        sync.Mutex
	sandboxes map[string]*sandbox // guarded by mu; nil: being made
	closed    bool                // guarded by mu
	probes    atomic.Int64
	closeOnce sync.Once
	closeErr  error
}

var _ isolation.Driver = (*Driver)(nil)

// New makes a Driver. Nothing is started until a module is run.
func New(c Config) (*Driver, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	engine, _ := c.Engine.describe()
	d := &Driver{engine: engine, config: c, sandboxes: map[string]*sandbox{}}
	d.digests.components = engine.components
	var err error
	if d.launcher, err = newLauncher(&d.config, &d.engine); err != nil {
		return nil, err
	}
	if c.CacheDir == "" {
		if d.tempDir, err = os.MkdirTemp("", "axo-wasm-"); err != nil {
			d.launcher.close()
			return nil, fmt.Errorf("module cache: %w", err)
		}
		c.CacheDir = d.tempDir
	}
	if d.cache, err = openCache(c.CacheDir, c.CacheBytes, engine.layout); err != nil {
		d.launcher.close()
		return nil, err
	}
	d.compiler = &compiler{engine: &d.engine, launcher: d.launcher, cache: d.cache, config: d.config, running: map[key]*compilation{}}
	d.slots = newSlots(c.Runnable)
	d.pool = newPool(d.launcher, &d.config, d.slots)
	return d, nil
}

// Name implements isolation.Driver: it is the engine's.
func (d *Driver) Name() string { return string(d.engine.name) }

// Create makes a sandbox for one module. The module is read and, the first
// time, compiled.
func (d *Driver) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	s, err := d.create(ctx, id, spec)
	if err != nil {
		return nil, &isolation.Error{Op: "create", Driver: d.Name(), ID: id, Outcome: isolation.NotStarted, Err: err}
	}
	return s, nil
}

func (d *Driver) create(ctx context.Context, id string, spec isolation.Spec) (_ *sandbox, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if err := d.reserve(id); err != nil {
		return nil, err
	}
	s := &sandbox{
		id: id, d: d, spec: spec, created: time.Now(),
		execs: map[string]*process{}, gone: make(chan struct{}),
	}
	s.quiet.L = &s.mu
	defer func() {
		if err != nil {
			for _, m := range s.mounts {
				m.dir.Close()
			}
			d.release(id)
		}
	}()
	d.pool.expect()
	if s.src, s.dialect, err = d.resolve(ctx, spec); err != nil {
		return nil, err
	}
	for _, m := range spec.Mounts {
		if s.src.component && !utf8.ValidString(m.Destination) {
			return nil, fmt.Errorf("mount %q: names of a component are UTF-8: %w", m.Destination, isolation.ErrInvalidArgument)
		}
		dir, err := openDir(m.Source)
		if err != nil {
			return nil, err
		}
		s.mounts = append(s.mounts, mount{m.Destination, m.ReadOnly, dir})
	}
	// Compiled now, so that a bad module is Create's error and Exec is fast.
	// A module that is run with a fuel limit is compiled once more for that.
	art, err := d.compiler.artefact(ctx, s.src, settings{})
	if err != nil {
		return nil, err
	}
	if m := spec.Resources.MemoryBytes; m > 0 && art.meta.MinMemory > uint64(m) {
		return nil, fmt.Errorf("the module declares at least %d bytes of memory, the limit is %d: %w", art.meta.MinMemory, m, isolation.ErrInvalidArgument)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	d.sandboxes[id] = s
	return s, nil
}

// resolve finds the module that runs spec: its own, or its language's
// interpreter.
func (d *Driver) resolve(ctx context.Context, spec isolation.Spec) (source, *dialect, error) {
	if spec.Requirement == isolation.WasmCompiled {
		src, err := d.digests.resolve(ctx, spec.Module)
		return src, nil, err
	}
	name := spec.SourceLanguage()
	l, ok := d.config.language(name)
	if !ok {
		if name == "" {
			name = spec.Requirement.String()
		}
		return source{}, nil, &isolation.UnsupportedError{Feature: name + " in the WASM tier", Need: "a WASI interpreter for it, or a container or a microVM"}
	}
	if !spec.Module.IsZero() {
		return source{}, nil, fmt.Errorf("%v has a module: %w", spec.Requirement, isolation.ErrInvalidArgument)
	}
	src, err := l.source()
	return src, dialects[name], err
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

// release frees an id that was reserved for what could not be created.
func (d *Driver) release(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sandboxes, id)
}

// forget frees the id of s, unless somebody else has it, or has it reserved, by
// now.
func (d *Driver) forget(s *sandbox) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sandboxes[s.id] == s {
		delete(d.sandboxes, s.id)
	}
}

// checkSpec refuses what this tier does not have.
func checkSpec(spec isolation.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	const stronger = "a container or a microVM"
	switch {
	case spec.Requirement == isolation.ContainerImage || spec.Requirement == isolation.NativeTrusted:
		return &isolation.UnsupportedError{Feature: fmt.Sprintf("%v in the WASM tier", spec.Requirement), Need: stronger}
	case !spec.Root.IsZero():
		return &isolation.UnsupportedError{Feature: "a root file system", Need: stronger + "; WASI has mounts only"}
	case spec.Hostname != "":
		return &isolation.UnsupportedError{Feature: "a host name", Need: stronger}
	case spec.Profile == "session":
		return &isolation.UnsupportedError{Feature: "the session profile", Need: stronger}
	case spec.Detached:
		return &isolation.UnsupportedError{Feature: "a sandbox that outlives its maker", Need: stronger}
	case spec.Func != "":
		return &isolation.UnsupportedError{Feature: "a registered function", Need: "tier none"}
	case spec.Resources.CPUs > 0:
		return &isolation.UnsupportedError{Feature: "a share of the CPU", Need: stronger + "; a module uses one core at most"}
	case !spec.Resources.IO.IsZero():
		return &isolation.UnsupportedError{Feature: "a limit of what is read and written a second", Need: stronger}
	case spec.Resources.Pids > 0:
		return &isolation.UnsupportedError{Feature: "a limit of processes", Need: stronger + "; a module cannot start any"}
	case spec.Resources.MemoryBytes > 4<<30:
		return fmt.Errorf("memory limit of %d bytes: a module can address 4 GiB: %w", spec.Resources.MemoryBytes, isolation.ErrInvalidArgument)
	}
	return nil
}

func openDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		class := isolation.ErrInvalidArgument
		if errors.Is(err, os.ErrNotExist) {
			class = isolation.ErrNotFound
		} else if errors.Is(err, os.ErrPermission) {
			class = isolation.ErrPermissionDenied
		}
		return nil, fmt.Errorf("mount: %w: %w", err, class)
	}
	info, err := f.Stat()
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("mount %s is not a directory: %w", path, isolation.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close ends all runs, workers and compilations.
func (d *Driver) Close() error {
	d.closeOnce.Do(func() {
		d.mu.Lock()
		d.closed = true
		live := make([]*sandbox, 0, len(d.sandboxes))
		for _, s := range d.sandboxes {
			if s != nil {
				live = append(live, s)
			}
		}
		d.mu.Unlock()
		var errs []error
		for _, s := range live {
			errs = append(errs, s.Delete(context.Background()))
		}
		d.compiler.wait()
		d.pool.close()
		d.launcher.close()
		d.cache.close()
		if d.tempDir != "" {
			errs = append(errs, os.RemoveAll(d.tempDir))
		}
		d.closeErr = errors.Join(errs...)
	})
	return d.closeErr
}
