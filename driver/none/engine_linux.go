package none

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/spawn"
)

// nativeEngine runs programs on Linux.
type nativeEngine struct {
	cfg     Config
	spawner spawn.Spawner

	mu    sync.Mutex
	found *cgroup.Tree // nil: not looked for yet
}

func newNative(c Config) (*nativeEngine, error) { return &nativeEngine{cfg: c}, nil }

func (e *nativeEngine) Close() error {
	e.spawner.Close()
	return nil
}

// groups says where control groups can be made, as of the last look.
func (e *nativeEngine) groups(again bool) *cgroup.Tree {
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

func (e *nativeEngine) Features() isolation.Features { return nativeFeatures() }

// Why a resource limit does not stand in for a missing controller.
const (
	notAS    = "; RLIMIT_AS does not stand in for it: it bounds the addresses of each process, of which runtimes reserve gigabytes that they never touch, and not the memory of all"
	notNPROC = "; RLIMIT_NPROC does not stand in for it: it counts all processes of a user on the host, and does not bind root"
)

func (e *nativeEngine) Probe(ctx context.Context, f *isolation.Features) error {
	g := e.groups(true)
	add := func(l isolation.Limit, controller, missing string) {
		x := isolation.Enforcement{Limit: l}
		if x.Enforced = g.Has(controller); x.Enforced {
			x.By = g.Version()
		} else {
			x.Reason = g.Why(controller) + missing
		}
		f.Enforces = append(f.Enforces, x)
	}
	add(isolation.LimitMemory, cgroup.Memory, notAS)
	add(isolation.LimitPids, cgroup.Pids, notNPROC)
	add(isolation.LimitCPUs, cgroup.CPU, "")
	add(isolation.LimitIO, cgroup.IO, "")
	if x := &f.Enforces[len(f.Enforces)-1]; x.Enforced {
		x.By, x.Uncounted = g.IOIs(), true
	}
	cpu := "process clocks, polled, and RLIMIT_CPU behind it"
	if g.CountsCPU() {
		cpu = g.Version() + ", polled, and RLIMIT_CPU behind it"
	} else {
		f.Warnings = append(f.Warnings, "without a cgroup, CPU time of background processes that ended is not counted")
	}
	f.Enforces = append(f.Enforces,
		isolation.Enforcement{Limit: isolation.LimitCPUTime, Enforced: true, By: cpu},
		isolation.Enforcement{Limit: isolation.LimitFiles, Enforced: true, By: "RLIMIT_NOFILE, of each process"})
	if !g.Any() {
		f.Warnings = append(f.Warnings,
			"without a cgroup, background processes are known by a resource limit that they inherit: one that changes its RLIMIT_RTTIME is lost, as those of this driver inside itself are",
			"without a cgroup, a kill for want of memory looks like any other SIGKILL",
			"without a cgroup, a host program that is killed takes its programs along, but not what they left in the background")
	}
	// The run below has each limit that was promised above.
	var r isolation.Resources
	if f.Enforcement(isolation.LimitMemory).Enforced {
		r.MemoryBytes = 64 << 20
	}
	if f.Enforcement(isolation.LimitPids).Enforced {
		r.Pids = 16
	}
	if f.Enforcement(isolation.LimitCPUs).Enforced {
		r.CPUs = 1
	}
	return probeProgram(ctx, e, r, f)
}

func (e *nativeEngine) Check(spec isolation.Spec) error {
	if err := checkSpec(spec); err != nil {
		return err
	}
	if spec.Func != "" {
		return proc.Unsupported("func", `engine "func"`)
	}
	if spec.Resources.IsZero() {
		return nil
	}
	return proc.CheckGroups(e.groups(false), spec.Resources)
}

// ioLimits are those of each disk.
func ioLimits(l isolation.IO) (list []cgroup.IOLimit) {
	if l.IsZero() {
		return nil
	}
	for _, d := range cgroup.Disks() {
		list = append(list, cgroup.IOLimit{Device: d, ReadBytes: l.ReadBytes, WriteBytes: l.WriteBytes, ReadOps: l.ReadOps, WriteOps: l.WriteOps})
	}
	return list
}

func (e *nativeEngine) CheckProcess(p isolation.ProcessSpec) error { return checkProcess(p) }

func (e *nativeEngine) Create(_ context.Context, id string, spec isolation.Spec) (_ proc.Place, err error) {
	pl := &nativePlace{eng: e}
	defer func() {
		pl.Tracked = proc.NewTracked(proc.TrackedConfig{
			Brand: pl.brand, Group: pl.group, Resources: spec.Resources, Drain: e.cfg.Drain, Start: pl.startProgram,
		})
	}()
	if pl.brand, err = proc.NewBrand(); err != nil {
		return nil, err
	}
	g := e.groups(false)
	if !g.Any() {
		return pl, nil
	}
	// Another program on the host may have a sandbox of this id.
	limits := cgroup.Limits{IO: ioLimits(spec.Resources.IO), MemoryBytes: spec.Resources.MemoryBytes, Pids: spec.Resources.Pids, CPUs: spec.Resources.CPUs}
	name := fmt.Sprintf("axo-none-%s-%s", id, pl.brand.Name())
	if r := e.cfg.Recorder; r != nil {
		if pl.entry, err = r.Record(name); err != nil {
			return nil, fmt.Errorf("record %s: %w", name, err)
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, pl.entry.Done())
			}
		}()
		failpoint.Hit(failpoint.NoneRecorded)
		for _, dir := range g.Paths(name, limits) {
			if err := pl.entry.AddPath("cgroup", dir); err != nil {
				return nil, fmt.Errorf("record %s: %w", name, err)
			}
		}
	}
	if pl.group, err = g.Create(name, limits); err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (%w)", err, isolation.ErrPermissionDenied)
		}
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	failpoint.Hit(failpoint.NoneGroup)
	return pl, nil
}
