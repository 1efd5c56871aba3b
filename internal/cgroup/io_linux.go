package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// IOLimit bounds what is read from and written to one block device, a second.
// Zero is no limit.
type IOLimit struct {
	Device                Device
	ReadBytes, WriteBytes int64
	ReadOps, WriteOps     int64
}

// Device is a block device, as a whole: parts of it have no limits of their own.
type Device struct{ Major, Minor uint32 }

// Disks lists the host's block devices that have a size.
func Disks() (list []Device) {
	const dir = "/sys/block"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // without sysfs nobody knows of any
	}
	for _, e := range entries {
		size, err := os.ReadFile(filepath.Join(dir, e.Name(), "size"))
		if err != nil || strings.TrimSpace(string(size)) == "0" {
			continue
		}
		var d Device
		number, err := os.ReadFile(filepath.Join(dir, e.Name(), "dev"))
		if err != nil {
			continue
		}
		if n, _ := fmt.Sscanf(string(number), "%d:%d", &d.Major, &d.Minor); n == 2 {
			list = append(list, d)
		}
	}
	return list
}

// limitIO is io.max of version 2, and blkio.throttle of version 1
// (Documentation/admin-guide/cgroup-v1/blkio-controller.rst).
func (g *Group) limitIO(l IOLimit) error {
	v2 := fmt.Sprintf("%d:%d", l.Device.Major, l.Device.Minor)
	for _, x := range []struct {
		n         int64
		key, file string
	}{
		{l.ReadBytes, "rbps", "read_bps"}, {l.WriteBytes, "wbps", "write_bps"}, {l.ReadOps, "riops", "read_iops"}, {l.WriteOps, "wiops", "write_iops"},
	} {
		switch {
		case x.n <= 0:
		case g.v2:
			v2 += fmt.Sprintf(" %s=%d", x.key, x.n)
		default:
			// Operations are counted in 32 bits.
			n := x.n
			if strings.HasSuffix(x.file, "iops") {
				n = min(n, 1<<32-1)
			}
			if err := g.set(IO, "blkio.throttle."+x.file+"_device", fmt.Sprintf("%d:%d %d", l.Device.Major, l.Device.Minor, n)); err != nil {
				return fmt.Errorf("io limit: %w", err)
			}
		}
	}
	if !g.v2 || !strings.Contains(v2, "=") {
		return nil
	}
	if err := g.set(IO, "io.max", v2); err != nil {
		return fmt.Errorf("io limit: %w", err)
	}
	return nil
}

// IOIs says what the limits on reading and writing count.
func (t *Tree) IOIs() string {
	if t.v2 {
		return t.Version() + ", of each block device; what is written back later counts where the file system tells whose it is (ext4, btrfs, xfs)"
	}
	return t.Version() + ", of each block device; what is written back later is not counted"
}
