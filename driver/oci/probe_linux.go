package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
)

func (e *builtin) Features() isolation.Features {
	f := isolation.Features{
		Tier: isolation.TierOCI, Engine: "builtin", Version: "host rootfs",
		Runs: []isolation.Requirement{isolation.Python, isolation.Shell, isolation.Arbitrary},
		Enforces: []isolation.Enforcement{
			{Limit: isolation.LimitWall, Enforced: true, By: "host timer"},
			{Limit: isolation.LimitOutput, Enforced: true, By: "host pump"},
			{Limit: isolation.LimitDisk, Enforced: true, Uncounted: true, By: "size of the tmpfs that holds all that is writable; read-write mounts are not bounded"},
			{Limit: isolation.LimitFiles, Enforced: true, By: "RLIMIT_NOFILE, of each process"},
			{Limit: isolation.LimitFuel, Reason: "native programs have no fuel"},
		},
		Walls: []isolation.Wall{
			{Name: "namespaces", Present: true, Detail: "user, pid, mount, network (loopback only), ipc, uts, cgroup"},
			{Name: "capabilities", Present: true, Detail: "none, no_new_privs; profile session: docker's, of the sandbox's own users only"},
			{Name: "seccomp", Present: true, Detail: "moby's default profile"},
		},
		Abilities: []string{isolation.AbilityPrepare, isolation.AbilityFiles, isolation.AbilityWatch, isolation.AbilityPorts, isolation.AbilityListen},
		Options: []isolation.Option{
			isolation.OptionCwd, isolation.OptionHostname, isolation.OptionMounts, isolation.OptionWritable,
			isolation.OptionTerminal, isolation.OptionRootPath,
		},
	}
	if err := fullRange(); err == nil {
		f.Options = append(f.Options, isolation.OptionUser, isolation.OptionSession)
	} else {
		f.Warnings = append(f.Warnings, "no --user, no --profile session: they need "+err.Error())
	}
	if meters(e.groups(false)) {
		f.Abilities = append(f.Abilities, isolation.AbilityStats)
	}
	if err := e.freezes(); err == nil {
		f.Abilities = append(f.Abilities, isolation.AbilityPause)
	} else {
		f.Warnings = append(f.Warnings, noPause+err.Error())
	}
	if e.sessions() {
		f.Abilities = append(f.Abilities, isolation.AbilityAttach, isolation.AbilityRecover)
		f.Options = append(f.Options, isolation.OptionDetached)
	}
	if e.keepErr != nil {
		f.Warnings = append(f.Warnings, "no detached sandboxes: "+e.keepErr.Error())
	}
	if e.cfg.Images != nil {
		f.Runs = append(f.Runs, isolation.ContainerImage)
		f.Options = append(f.Options, isolation.OptionImage)
	}
	if e.guest.path != "" {
		f.Depends = []string{e.guest.path}
	}
	return f
}

// Probe makes a container and runs something in it.
func (e *builtin) Probe(ctx context.Context, f *isolation.Features) error {
	return e.probeWith(ctx, f, func(ctx context.Context, id string, spec isolation.Spec) (sandbox, error) {
		return made(e.create(ctx, id, spec))
	})
}

// sandbox is a place in which a probe tries something.
type sandbox interface {
	proc.Place
	try(ctx context.Context, script string) (code, sig int, err error)
	noted() []string
}

type createFunc func(ctx context.Context, id string, spec isolation.Spec) (sandbox, error)

// made makes no sandbox of a nil.
func made[T sandbox](s T, err error) (sandbox, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (e *builtin) probeWith(ctx context.Context, f *isolation.Features, create createFunc) error {
	if e.guestErr != nil {
		return e.guestErr
	}
	g := e.groups(true)
	for _, l := range []struct {
		limit      isolation.Limit
		controller string
	}{{isolation.LimitMemory, cgroup.Memory}, {isolation.LimitPids, cgroup.Pids}, {isolation.LimitCPUs, cgroup.CPU}} {
		x := isolation.Enforcement{Limit: l.limit, Enforced: g.Has(l.controller), By: g.Version()}
		if !x.Enforced {
			x.By, x.Reason = "", g.Why(l.controller)
		}
		f.Enforces = append(f.Enforces, x)
	}
	if g.Has(cgroup.IO) {
		f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: isolation.LimitIO, Enforced: true, Uncounted: true, By: g.IOIs()})
	} else {
		f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: isolation.LimitIO, Reason: g.Why(cgroup.IO)})
	}
	cpu := "process clocks, polled, and RLIMIT_CPU behind it"
	if g.CountsCPU() {
		cpu = g.Version() + ", polled, and RLIMIT_CPU behind it"
	}
	f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: isolation.LimitCPUTime, Enforced: true, By: cpu})
	if g.Any() {
		f.Walls = append(f.Walls, isolation.Wall{Name: "cgroup", Present: true, Detail: g.Version()})
	} else {
		f.Walls = append(f.Walls, isolation.Wall{Name: "cgroup", Detail: g.Why(cgroup.Memory)})
	}
	notes, err := e.probe(ctx, create)
	if err != nil {
		return explain(err)
	}
	if err := e.freezes(); err != nil && slices.Contains(f.Abilities, isolation.AbilityPause) {
		f.Abilities = slices.DeleteFunc(f.Abilities, func(a string) bool { return a == isolation.AbilityPause })
		f.Warnings = append(f.Warnings, noPause+err.Error())
	}
	landlock := isolation.Wall{Name: "landlock", Present: true, Detail: "writes where mounts allow them, no signals to outside"}
	for _, n := range notes {
		if why, ok := strings.CutPrefix(n, "landlock: "); ok {
			landlock = isolation.Wall{Name: "landlock", Detail: why}
		} else {
			f.Warnings = append(f.Warnings, n)
		}
	}
	f.Walls = append(f.Walls, landlock)
	if err := e.probeOverlay(ctx, create); err != nil {
		f.Runs = slices.DeleteFunc(f.Runs, func(r isolation.Requirement) bool { return r == isolation.ContainerImage })
		f.Options = slices.DeleteFunc(f.Options, func(o isolation.Option) bool { return o == isolation.OptionImage || o == isolation.OptionRootPath })
		f.Warnings = append(f.Warnings, "no images, no --root: "+err.Error())
	}
	return nil
}

var probes atomic.Int64

func (e *builtin) probe(ctx context.Context, create createFunc) (notes []string, err error) {
	id := fmt.Sprintf("probe-%d-%d", os.Getpid(), probes.Add(1))
	pl, err := create(ctx, id, isolation.Spec{Requirement: isolation.Shell})
	if err != nil {
		return nil, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, pl.Remove(undo))
	}()
	code, sig, err := pl.try(ctx, "exit 7")
	if err == nil && (code != 7 || sig != 0) {
		err = fmt.Errorf("a shell that exits with 7 has status %d, signal %d", code, sig)
	}
	if c, ok := pl.(*container); ok && err == nil && e.freezes() == nil {
		ferr := c.tryFreeze(ctx)
		e.mu.Lock()
		e.frozen = ferr
		e.mu.Unlock()
	}
	return pl.noted(), err
}

// try runs a shell script without input and output.
func (c *container) try(ctx context.Context, script string) (code, sig int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, err
	}
	defer null.Close()
	ch, err := c.conn.spawn(ctx, &wire.SpawnMessage{Args: []string{"/bin/sh", "-c", script}, Rlimits: c.rlimits(isolation.Limits{}, c.brand)},
		[]*os.File{null, null, null})
	if err != nil {
		return 0, 0, err
	}
	select {
	case <-ch.done:
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	st, err := ch.Wait()
	return st.Code, int(st.Signal), err
}

func (c *container) noted() []string { return c.notes }

// explain adds what a person can do about a host that allows no containers.
func explain(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	for _, s := range []struct{ file, bad, fix string }{
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1, or run as root"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root"},
	} {
		if b, rerr := os.ReadFile(s.file); rerr == nil && strings.TrimSpace(string(b)) == s.bad {
			return fmt.Errorf("%w; this host does not allow user namespaces (%s is %s): %s", err, s.file, s.bad, s.fix)
		}
	}
	return err
}
