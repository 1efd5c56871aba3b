package oci

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/driver/oci/internal/document"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/journal"
	"github.com/axocoatl/isolation/internal/spawn"
)

// New returns the engine that the configuration names.
func New(c Config) (*Driver, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if c.DiskBytes == 0 {
		c.DiskBytes = min(1<<30, hostMemory()/4)
	}
	e := &builtin{cfg: c, guest: &program{}}
	e.openKeep()
	if kind, ok := runtimeNamed(c.Engine); ok {
		if c.Guest != "" || len(embeddedGuest) == 0 { // else it is unpacked when it is wanted
			e.guest, e.guestErr = findGuest(&c)
		}
		return proc.New(newHosted(e, kind), c.Drain), nil
	}
	e.kinds.on = true
	e.guest, e.guestErr = findGuest(&c)
	return proc.New(e, c.Drain), nil
}

func hostMemory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 4 << 30
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// builtin is the engine that makes containers itself.
type builtin struct {
	cfg      Config
	guest    *program
	guestErr error
	ranges   ranges
	kinds    kinds
	spawner  spawn.Spawner
	closing  sync.Once

	keep    *journal.Keep // nil: nothing outlives this process
	keepErr error

	guestSum sync.Once
	guestHex string
	sumErr   error

	mu     sync.Mutex
	found  *cgroup.Tree // nil: not looked for yet
	frozen error        // why a probe could not freeze what it had made; guarded by mu
}

func (e *builtin) Name() string { return "builtin" }

func (e *builtin) Close() error {
	e.spawner.Close()
	e.closing.Do(e.guest.close)
	return nil
}

// groups says where control groups can be made, as of the last look.
func (e *builtin) groups(again bool) *cgroup.Tree {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.found == nil || again {
		if e.cfg.NoCgroup {
			e.found = cgroup.None("turned off by configuration")
		} else {
			e.found = cgroup.Find()
		}
	}
	return e.found
}

func (e *builtin) Check(spec isolation.Spec) error {
	switch {
	case e.guestErr != nil:
		return e.guestErr
	case !slices.Contains(e.Features().Runs, spec.Requirement):
		return proc.Unsupported("requirement "+spec.Requirement.String(), "another tier or engine")
	case !spec.Module.IsZero():
		return proc.Unsupported("a module", "the wasm tier")
	case spec.Func != "":
		return proc.Unsupported("func", `engine "func"`)
	case spec.Root.Template != "":
		return proc.Unsupported("a template", "the microVM tier")
	case spec.Root.Image != "" && e.cfg.Images == nil:
		return proc.Unsupported("an image", "a store of images in Config.Images")
	case spec.Requirement == isolation.ContainerImage && spec.Root.Image == "":
		return fmt.Errorf("a container image is to run, and none is named: %w", isolation.ErrInvalidArgument)
	case spec.Profile == "session" && fullRange() != nil:
		return proc.Unsupported("profile session", fullRange().Error())
	case spec.Profile == "session" && spec.Root.IsZero():
		return proc.Unsupported("profile session on the host's own programs, which are nobody's inside,", "a root file system of its own: an image or a directory")
	case spec.Language != "" && spec.Requirement != isolation.Arbitrary:
		return proc.Unsupported("language "+spec.Language+" with "+spec.Requirement.String(), "the requirement Arbitrary")
	}
	for _, m := range spec.Mounts {
		if err := root.CheckMount(m); err != nil {
			return err
		}
	}
	return proc.CheckGroups(e.groups(false), spec.Resources)
}

func (e *builtin) CheckProcess(p isolation.ProcessSpec) error {
	if p.Limits.Fuel > 0 {
		return proc.Unsupported("fuel limit", "the wasm tier")
	}
	return nil
}

// undoTimeout bounds what is done to clean up after a caller gave up.
const undoTimeout = 10 * time.Second

func (e *builtin) Create(ctx context.Context, id string, spec isolation.Spec) (proc.Place, error) {
	return place(e.create(ctx, id, spec))
}

func (e *builtin) create(ctx context.Context, id string, spec isolation.Spec) (*container, error) {
	return e.createWith(ctx, id, spec, e.launch)
}

// launchFunc starts the guest of a container, and waits for its HELLO. It also sets
// the limits, at a time when there is nothing else to do.
type launchFunc func(ctx context.Context, c *container, b *bundle.Bundle, d *document.Container) error

func (e *builtin) createWith(ctx context.Context, id string, spec isolation.Spec, launch launchFunc) (_ *container, err error) {
	if e.guestErr != nil {
		return nil, e.guestErr
	}
	c := &container{eng: e, req: spec.Requirement}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			err = errors.Join(err, c.Remove(undo))
		}
	}()
	if c.brand, err = proc.NewBrand(); err != nil {
		return nil, err
	}
	b, d, err := e.prepare(ctx, c, spec)
	if err != nil {
		return nil, err
	}
	if spec.Detached {
		if err := e.keepNew(c, id); err != nil {
			return nil, err
		}
	}
	if err := e.account(c, id, d.Limits); err != nil {
		return nil, err
	}
	c.Tracked = proc.NewTracked(c.tracked(spec.Resources))
	if c.kept != nil {
		if err := e.describeSession(c, spec, b, d.Limits); err != nil {
			return nil, fmt.Errorf("record %s: %w", c.name, err)
		}
	}
	if err := launch(ctx, c, b, d); err != nil {
		return nil, err
	}
	if c.kept != nil {
		if err := c.kept.Ready(); err != nil {
			return nil, fmt.Errorf("record %s: %w", c.name, err)
		}
		failpoint.Hit(failpoint.OCIReady)
	}
	return c, nil
}

// tracked is what a container's programs are tracked by.
func (c *container) tracked(r isolation.Resources) proc.TrackedConfig {
	t := proc.TrackedConfig{Brand: c.brand, Group: c.group, Resources: r, Drain: c.eng.cfg.Drain, Start: c.startProgram}
	if c.kept != nil {
		t.StartHeld = c.startHeld
	}
	return t
}

// prepare gives a container its user ids and its root, and describes it. There is no
// bundle of a kind that is known.
func (e *builtin) prepare(ctx context.Context, c *container, spec isolation.Spec) (b *bundle.Bundle, d *document.Container, err error) {
	if c.ids, err = e.ranges.take(); err != nil {
		return nil, nil, err
	}
	if err := e.openRoot(ctx, c, spec); err != nil {
		return nil, nil, err
	}
	if d, err = e.kinds.describe(e, c, spec); err == nil && d == nil {
		b, d, err = e.describe(c, spec)
	}
	if err != nil {
		return nil, nil, err
	}
	c.limits = d.Rlimits
	return b, d, nil
}

// bound sets the limits of a container's control groups.
func (c *container) bound(l cgroup.Limits) error {
	if err := c.group.Impose(l); err != nil {
		return fmt.Errorf("limit control group: %w", err)
	}
	if l.MemoryBytes > 0 {
		if err := c.EndOnOOM(); err != nil {
			return fmt.Errorf("wait for the end of memory: %w", err)
		}
	}
	return nil
}

// account makes the journal's entry and the control groups, without their limits.
func (e *builtin) account(c *container, id string, limits cgroup.Limits) (err error) {
	name := fmt.Sprintf("axo-oci-%s-%s", id, c.brand.Name())
	c.name = name
	if r := e.cfg.Recorder; r != nil && c.kept == nil {
		if c.entry, err = r.Record(name); err != nil {
			return fmt.Errorf("record %s: %w", name, err)
		}
	}
	failpoint.Hit(failpoint.OCIRecorded)
	g := e.groups(false)
	if !g.Any() {
		return nil
	}
	if c.entry != nil {
		for _, dir := range g.KeptPaths(name, limits) {
			if err := c.entry.AddPath("cgroup", dir); err != nil {
				return fmt.Errorf("record %s: %w", name, err)
			}
		}
	}
	if c.group, err = g.CreateKept(name, limits, c.ids.host()); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	failpoint.Hit(failpoint.OCIGroup)
	return nil
}
