package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/spawn"
)

// New returns the engine "qemu".
func New(c Config) (*Driver, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	return proc.New(&engine{cfg: c}, c.Drain), nil
}

type engine struct {
	cfg     Config
	spawner spawn.Spawner

	mu     sync.Mutex
	groups *cgroup.Tree // nil: not looked for yet
	ready  *loaded      // nil: not loaded yet
	closed bool
}

func (e *engine) Name() string { return "qemu" }

func (e *engine) Close() error {
	e.spawner.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.ready != nil {
		e.ready.close()
		e.ready = nil
	}
	return nil
}

// tree says where control groups can be made.
func (e *engine) tree() *cgroup.Tree {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.groups == nil {
		if e.cfg.NoCgroup {
			e.groups = cgroup.None("turned off by configuration")
		} else {
			e.groups = cgroup.Find()
		}
	}
	return e.groups
}

// template returns the default template, verified and in memory. One that was
// built anew meanwhile is taken.
func (e *engine) template() (*loaded, error) {
	q, err := e.vmm()
	if err != nil {
		return nil, err
	}
	t, err := readTemplate(e.cfg.Templates, DefaultTemplate)
	if errors.Is(err, isolation.ErrNotFound) {
		return nil, proc.Unsupported("a microVM without a template", setupFix)
	} else if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("the driver is closed: %w", isolation.ErrFailedPrecondition)
	}
	if e.ready != nil && e.ready.Digest == t.Digest {
		return e.ready, nil
	}
	l, err := load(t, q)
	if err != nil {
		return nil, err
	}
	if e.ready != nil {
		e.ready.close()
	}
	e.ready = l
	return l, nil
}

func (e *engine) Features() isolation.Features {
	f := isolation.Features{
		Tier: isolation.TierMicroVM, Engine: "qemu",
		Runs: []isolation.Requirement{isolation.Python, isolation.Shell, isolation.Arbitrary},
		Enforces: []isolation.Enforcement{
			{Limit: isolation.LimitWall, Enforced: true, By: "host timer"},
			{Limit: isolation.LimitOutput, Enforced: true, By: "host pump"},
			{Limit: isolation.LimitFiles, Enforced: true, By: "RLIMIT_NOFILE, of each process"},
			{Limit: isolation.LimitCPUTime, Enforced: true, By: "the guest's cgroup, polled, and RLIMIT_CPU behind it"},
			{Limit: isolation.LimitMemory, Enforced: true, By: "the guest's cgroup; the machine's memory behind it"},
			{Limit: isolation.LimitPids, Enforced: true, By: "the guest's cgroup"},
			{Limit: isolation.LimitCPUs, Enforced: true, By: "the guest's cgroup; the machine's processors behind it"},
			{Limit: isolation.LimitDisk, Reason: "what programs write is memory of the machine, half of it at most"},
			{Limit: isolation.LimitFuel, Reason: "native programs have no fuel"},
		},
		Options:   []isolation.Option{isolation.OptionCwd, isolation.OptionUser, isolation.OptionHostname, isolation.OptionTerminal},
		Abilities: []string{isolation.AbilityPause, isolation.AbilityPrepare, isolation.AbilityFiles, isolation.AbilityWatch},
	}
	q, err := e.vmm()
	if err == nil {
		f.Depends = append(f.Depends, q.caps().path)
	}
	t, err := readTemplate(e.cfg.Templates, DefaultTemplate)
	if err != nil {
		return f
	}
	f.Depends = append(f.Depends, t.path(fileTemplate))
	f.Version, f.Emulated = t.VMM, t.Shape.Accel == qemu.TCG
	wall := isolation.Wall{Name: "vm", Present: true, Detail: "KVM, QEMU microvm, Linux " + t.Kernel}
	if f.Emulated {
		wall = isolation.Wall{Name: "vm", Detail: "emulated (TCG), which QEMU does not call a boundary; Linux " + t.Kernel}
	}
	f.Walls = []isolation.Wall{
		{Name: "guest", Present: true, Detail: "in the machine: pid and mount namespaces, no capabilities, no_new_privs, cgroup"},
		wall,
		{Name: "jail", Present: true, Detail: "of QEMU: user, pid, mount, network, ipc, uts and cgroup namespaces, nobody, no capabilities, no_new_privs, seccomp"},
	}
	return f
}

// Probe restores a machine and runs something in it.
func (e *engine) Probe(ctx context.Context, f *isolation.Features) (err error) {
	if g := e.tree(); g.Has(cgroup.Memory) {
		f.Walls = append(f.Walls, isolation.Wall{Name: "cgroup", Present: true, Detail: g.Version()})
	} else {
		f.Walls = append(f.Walls, isolation.Wall{Name: "cgroup", Detail: g.Why(cgroup.Memory)})
	}
	m, err := e.create(ctx, fmt.Sprintf("probe-%d", os.Getpid()), isolation.Spec{Requirement: isolation.Shell})
	if err != nil {
		return err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, m.Remove(undo))
	}()
	f.Warnings = append(f.Warnings, m.Conn.Hello().Notes...)
	code, err := run(ctx, m.Conn, "/bin/sh", "-c", "exit 7")
	if err == nil && code != 7 {
		err = fmt.Errorf("a shell that exits with 7 has status %d", code)
	}
	return err
}

func (e *engine) Check(spec isolation.Spec) error {
	switch {
	case spec.Requirement != isolation.Python && spec.Requirement != isolation.Shell && spec.Requirement != isolation.Arbitrary:
		return proc.Unsupported("requirement "+spec.Requirement.String(), "another tier or engine")
	case !spec.Module.IsZero():
		return proc.Unsupported("a module", "the wasm tier")
	case spec.Func != "":
		return proc.Unsupported("func", `engine "func"`)
	case !spec.Root.IsZero():
		return proc.Unsupported("a root of one's own in a microVM", "the container tier")
	case spec.Language != "":
		return proc.Unsupported("language "+spec.Language, "a tier with an interpreter for it")
	case spec.Profile == "session":
		return proc.Unsupported("profile session in a microVM", "the container tier")
	case len(spec.Mounts) > 0:
		return proc.Unsupported("directories of the host in a microVM", "the container tier")
	case spec.Resources.DiskBytes > 0:
		return proc.Unsupported("disk limit in a microVM", "the container tier")
	}
	if t, err := readTemplate(e.cfg.Templates, DefaultTemplate); err == nil { // if not, Create says why
		return t.holds(spec.Resources)
	}
	return nil
}

// holds refuses limits that are more than the machine has, and would not be
// limits.
func (t *Template) holds(r isolation.Resources) error {
	// The kernel and the guest have a part of the memory.
	if most := int64(t.Shape.MemoryMiB-reservedMiB) << 20; r.MemoryBytes > most {
		return proc.Unsupported(fmt.Sprintf("%d bytes of memory in a machine of %d MiB", r.MemoryBytes, t.Shape.MemoryMiB),
			fmt.Sprintf("at most %d, or a larger template (axo template build --memory)", most))
	}
	if r.CPUs > float64(t.Shape.CPUs) {
		return proc.Unsupported(fmt.Sprintf("%g cores in a machine of %d", r.CPUs, t.Shape.CPUs), "a larger template (axo template build --cpus)")
	}
	return nil
}

// reservedMiB is what kernel and guest have of a machine's memory.
const reservedMiB = 64

func (e *engine) CheckProcess(p isolation.ProcessSpec) error {
	if p.Limits.Fuel > 0 {
		return proc.Unsupported("fuel limit", "the wasm tier")
	}
	return nil
}
