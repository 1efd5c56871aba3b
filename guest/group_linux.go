package guest

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// groups are what a guest counts and bounds programs by that nobody outside can
// see: one group for all, and below it one for each.
type groups struct {
	all  *cgroup.Group
	tree *cgroup.Tree // below all
	last atomic.Uint64
}

// makeGroup makes the group of one program; nil: the guest makes none.
func (g *guest) makeGroup() (*cgroup.Group, error) {
	if g.vm == nil || g.vm.groups.tree == nil {
		return nil, nil
	}
	n := g.vm.groups.last.Add(1)
	group, err := g.vm.groups.tree.Create("p"+strconv.FormatUint(n, 10), cgroup.Limits{})
	if err != nil {
		return nil, &classError{classExhausted, err}
	}
	return group, nil
}

// removeGroup removes a program's group once it is empty: background programs
// may live in it for long. One that stays goes with the machine.
func removeGroup(group *cgroup.Group) {
	if group == nil {
		return
	}
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Minute) {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		err := group.Delete(ctx)
		cancel()
		if err == nil {
			return
		}
		time.Sleep(wait)
	}
}

// groupCounters is what the group of all has counted.
func (g *guest) groupCounters() cgroup.Counters {
	if g.vm == nil {
		return cgroup.Counters{}
	}
	return g.vm.groups.all.Read()
}

// oomGrace is how much longer the kernel may take to take away what it kills
// with the first that it killed for want of memory.
const oomGrace = 2 * time.Second

// account adds to the end of a process what its group has counted, and who is
// left of it. It waits for those that are about to go, no longer than until
// grace.
func (g *guest) account(p *process, m *wire.ExitMessage, grace time.Time) {
	if p.group == nil {
		m.Survivors = uint64(g.survivors(p.pid, grace))
		return
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		pids, err := p.group.PIDs()
		m.Survivors = uint64(len(pids))
		if err != nil || len(pids) == 0 || time.Now().After(grace) && (p.group.Read().OOM == 0 || time.Now().After(grace.Add(oomGrace))) {
			break
		}
		time.Sleep(wait)
	}
	c, all := p.group.Read(), g.groupCounters()
	m.CPU = max(m.CPU, uint64(max(0, c.CPU-p.program.before)))
	if c.Peak > 0 {
		m.PeakMemory = uint64(c.Peak)
	}
	m.OOMKills = uint64(c.OOM)
	// Kernels differ in which group counts a fork that was refused: its own, or
	// the one whose limit it was.
	m.PidsHits = uint64(max(c.Pids, all.Pids-p.before.Pids))
}

func usageOf(group *cgroup.Group) *wire.UsageMessage {
	c := group.Read()
	m := &wire.UsageMessage{CPU: uint64(max(0, c.CPU)), PeakMemory: uint64(max(0, c.Peak))}
	if pids, err := group.PIDs(); err == nil {
		m.Processes = uint64(len(pids))
	}
	return m
}

// usage is that of all programs.
func (g *guest) usage() *wire.UsageMessage {
	if g.vm == nil || g.vm.groups.all == nil {
		return &wire.UsageMessage{}
	}
	return usageOf(g.vm.groups.all)
}

// isFull reports whether there is no room left where programs may write. The
// kernel counts no refusals: one that made room again is not seen.
func (g *guest) isFull() bool {
	var st unix.Statfs_t
	var err error
	if g.vm != nil {
		err = unix.Fstatfs(fdOf(g.vm.root), &st)
	} else {
		err = unix.Statfs("/", &st)
	}
	return err == nil && (st.Bavail == 0 || st.Ffree == 0)
}
