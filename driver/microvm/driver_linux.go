package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/ids"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/journal"
	"github.com/axocoatl/isolation/internal/spawn"
)

// New returns an engine.
func New(c Config) (isolation.Driver, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	e := &engine{cfg: c}
	for _, dir := range []string{c.Templates, c.Snapshots} {
		if dir != "" {
			sweepBuilds(dir)
			sweepGone(dir, dirsPrefix)
		}
	}
	if e.ownsRunDir() == nil {
		sweepGone(e.cfg.RunDir, "")
	}
	e.openKeep()
	d := proc.New(e, c.Drain)
	if e.copies() {
		return &restorer{d, e}, nil
	}
	return d, nil
}

type engine struct {
	cfg     Config
	spawner spawn.Spawner
	users   ids.Ranges

	keep    *journal.Keep // nil: no machine outlives this process
	keepErr error

	mu     sync.Mutex
	groups *cgroup.Tree // nil: not looked for yet
	ready  []*loaded    // the one used last is the last
	closed bool

	loading  sync.Mutex // one at a time is read; taken before mu
	building sync.Mutex // one at a time is built; taken before loading
}

func (e *engine) Name() string { return e.cfg.engine() }

func (e *engine) Close() error {
	e.spawner.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, l := range e.ready {
		if l.users == 0 {
			l.close()
		}
	}
	e.ready = nil
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

func (e *engine) Features() isolation.Features {
	f := isolation.Features{
		Tier: isolation.TierMicroVM, Engine: e.Name(),
		Runs: []isolation.Requirement{isolation.Python, isolation.Shell, isolation.Arbitrary},
		Enforces: []isolation.Enforcement{
			{Limit: isolation.LimitWall, Enforced: true, By: "host timer"},
			{Limit: isolation.LimitOutput, Enforced: true, By: "host pump"},
			{Limit: isolation.LimitFiles, Enforced: true, By: "RLIMIT_NOFILE, of each process"},
			{Limit: isolation.LimitCPUTime, Enforced: true, By: "the guest's cgroup, polled, and RLIMIT_CPU behind it"},
			{Limit: isolation.LimitMemory, Enforced: true, By: "the guest's cgroup; the machine's memory behind it, which is at least as much"},
			{Limit: isolation.LimitPids, Enforced: true, By: "the guest's cgroup"},
			{Limit: isolation.LimitCPUs, Enforced: true, By: "the guest's cgroup; the machine's processors behind it, which are at least as many"},
			{Limit: isolation.LimitDisk, Enforced: true, Uncounted: true, By: "size of the machine's tmpfs that holds all that is writable"},
			{Limit: isolation.LimitIO, Reason: "a machine's disks are memory of the host, or in its page cache"},
			{Limit: isolation.LimitFuel, Reason: "native programs have no fuel"},
		},
		Options: []isolation.Option{
			isolation.OptionCwd, isolation.OptionUser, isolation.OptionHostname, isolation.OptionTerminal, isolation.OptionTemplate,
		},
		Abilities: []string{isolation.AbilityAttach, isolation.AbilityPause, isolation.AbilityPrepare, isolation.AbilityFiles, isolation.AbilityWatch, isolation.AbilityPorts, isolation.AbilityListen, isolation.AbilityStats},
	}
	if e.copies() {
		f.Abilities = append(f.Abilities, isolation.AbilitySnapshot, isolation.AbilityRestore, isolation.AbilityFork)
	}
	if e.keep != nil {
		f.Abilities = append(f.Abilities, isolation.AbilityRecover)
		f.Options = append(f.Options, isolation.OptionDetached)
	}
	if e.cfg.Builder != nil {
		f.Runs = append(f.Runs, isolation.ContainerImage)
		f.Options = append(f.Options, isolation.OptionImage, isolation.OptionRootPath, isolation.OptionSession)
	}
	q, err := e.vmm()
	if err == nil {
		f.Depends = append(f.Depends, q.caps().path)
		if e.cfg.Builder != nil && q.caps().dataBytes > 0 {
			f.Options = append(f.Options, isolation.OptionMounts)
		}
	}
	t, err := ReadTemplate(e.cfg.Templates, DefaultTemplate)
	if err != nil {
		return f
	}
	f.Depends = append(f.Depends, t.path(fileTemplate))
	f.Version, f.Emulated = t.VMM, t.Shape.Accel == qemu.TCG
	wall := isolation.Wall{Name: "vm", Present: true, Detail: "KVM, " + vmmNames[e.Name()] + ", Linux " + t.Key.Kernel}
	if f.Emulated {
		wall = isolation.Wall{Name: "vm", Detail: "emulated (TCG), which QEMU does not call a boundary; Linux " + t.Key.Kernel}
	}
	f.Walls = []isolation.Wall{
		{Name: "guest", Present: true, Detail: "in the machine: pid and mount namespaces, no capabilities, no_new_privs, seccomp, cgroup"},
		wall,
		{Name: "jail", Present: true, Detail: "of " + vmmNames[e.Name()] + ": user, pid, mount, network, ipc, uts and cgroup namespaces, a user that is nobody else, no capabilities, no_new_privs" + jails[e.Name()]},
	}
	return f
}

// filters tells of Firecracker's own filters, which not all builds have.
func filters(pid int) isolation.Wall {
	w := isolation.Wall{Name: "seccomp", Detail: "this build of Firecracker has no filters; its releases have"}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil {
		w.Detail = err.Error()
	} else if strings.Contains(string(b), "\nSeccomp:\t2\n") {
		w.Present, w.Detail = true, "Firecracker's own, by thread"
	}
	return w
}

// jails are what is around a VMM beyond what is around all.
var jails = map[string]string{QEMU: ", a root of its own, seccomp", Firecracker: ", a root of its own"}

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
	if e.Name() == Firecracker {
		f.Walls = append(f.Walls, filters(m.vm.pid()))
	}
	code, err := run(ctx, m.Conn, "/bin/sh", "-c", "exit 7")
	if err == nil && code != 7 {
		err = fmt.Errorf("a shell that exits with 7 has status %d", code)
	}
	return err
}

func (e *engine) Check(spec isolation.Spec) error {
	switch {
	case !slices.Contains(e.Features().Runs, spec.Requirement):
		return proc.Unsupported("requirement "+spec.Requirement.String(), "another tier or engine")
	case !spec.Module.IsZero():
		return proc.Unsupported("a module", "the wasm tier")
	case spec.Func != "":
		return proc.Unsupported("func", `engine "func"`)
	case spec.Requirement == isolation.ContainerImage && spec.Root.Image == "":
		return fmt.Errorf("a container image is to run, and none is named: %w", isolation.ErrInvalidArgument)
	case spec.Language != "" && spec.Requirement != isolation.Arbitrary:
		return proc.Unsupported("language "+spec.Language+" with "+spec.Requirement.String(), "the requirement Arbitrary")
	case (spec.Root.Image != "" || spec.Root.Path != "" || spec.Profile == "session") && e.cfg.Builder == nil:
		return proc.Unsupported("a root of one's own, or profile session, in a microVM", "a program that can build templates")
	case !spec.Resources.IO.IsZero():
		return proc.Unsupported("io limit in a microVM, whose disks are memory", "the container tier")
	case len(spec.Mounts) > 0 && e.cfg.Builder == nil:
		return proc.Unsupported("directories of the host in a microVM", "a program that can make disks of them")
	case slices.ContainsFunc(spec.Mounts, func(m isolation.Mount) bool { return !m.ReadOnly }):
		return proc.Unsupported("a writable directory of the host in a microVM", "a read-only one, which is copied, or the container tier")
	case spec.Detached && e.keep == nil && e.keepErr == nil:
		return proc.Unsupported("a detached microVM", "the container tier")
	case spec.Root.Template != "" && checkTemplateName(spec.Root.Template) != nil:
		return checkTemplateName(spec.Root.Template)
	}
	for _, m := range spec.Mounts {
		if err := root.CheckMount(m); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) CheckProcess(p isolation.ProcessSpec) error {
	if p.Limits.Fuel > 0 {
		return proc.Unsupported("fuel limit", "the wasm tier")
	}
	return nil
}
