package oci

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// meters reports whether containers tell what they use: their groups do.
func meters(g *cgroup.Tree) bool { return g.CountsCPU() && g.Has(cgroup.Memory) }

// Meter implements [proc.Metered].
func (c *container) Meter() proc.Meter {
	if c.group == nil {
		return nil
	}
	return func(ctx context.Context) (isolation.Usage, error) {
		now := c.group.Read()
		u := isolation.Usage{CPU: now.CPU, PeakMemoryBytes: now.Peak, Now: &isolation.Load{Memory: c.group.Memory(), Cache: c.group.Cache()}}
		var cpus unix.CPUSet
		if err := unix.SchedGetaffinity(c.pid, &cpus); err != nil {
			return u, err
		}
		u.Now.CPUs = cpus.Count()
		var s unix.Sysinfo_t
		err := unix.Sysinfo(&s)
		if err != nil {
			return u, err
		}
		u.Now.MemoryTotal = int64(s.Totalram) * int64(s.Unit)
		// All that is writable is one file system.
		u.Now.Disk, u.Now.DiskTotal, err = (&guestconn.Files{Conn: c.conn.rest}).Space(ctx, "/tmp")
		return u, err
	}
}

// Meter implements [proc.Metered]: of a sandbox without files the disk can't be told.
func (*piped) Meter() proc.Meter { return nil }
