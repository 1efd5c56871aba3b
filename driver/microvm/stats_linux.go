package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// Meter implements [proc.Metered]. What it tells is what the guest's kernel says: what a
// machine takes of the host is more, and nobody's who uses it.
func (m *machine) Meter() proc.Meter {
	f := &guestconn.Files{Conn: m.Conn}
	return func(ctx context.Context) (isolation.Usage, error) {
		u := isolation.Usage{PeakMemoryBytes: -1, Now: &isolation.Load{}}
		var errs []error
		for name, read := range map[string]func(string, *isolation.Usage){"/proc/meminfo": readMemory, "/proc/stat": readCPU} {
			text, err := readAll(ctx, f, name)
			if err == nil {
				read(text, &u)
			}
			errs = append(errs, err)
		}
		var err error
		// All that is writable is one file system.
		u.Now.Disk, u.Now.DiskTotal, err = f.Space(ctx, "/tmp")
		return u, errors.Join(append(errs, err)...)
	}
}

// maxProc bounds what is read of a file that a guest's kernel makes.
const maxProc = 64 << 10

func readAll(ctx context.Context, f *guestconn.Files, name string) (string, error) {
	r, err := f.ReadFile(ctx, name)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxProc))
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(b), nil
}

// readMemory reads /proc/meminfo (proc_meminfo(5)). A guest that lies tells of itself
// alone.
func readMemory(text string, u *isolation.Usage) {
	kib := map[string]int64{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			kib[strings.TrimSuffix(f[0], ":")] = max(0, min(n, 1<<50))
		}
	}
	n := u.Now
	n.MemoryTotal = kib["MemTotal"] << 10
	n.Memory = max(0, n.MemoryTotal-kib["MemFree"]<<10)
	n.Cache = min(n.Memory, (kib["Active(file)"]+kib["Inactive(file)"])<<10)
}

// readCPU reads /proc/stat (proc_stat(5)): hundredths of a second in user, nice, system,
// idle, iowait, irq and softirq, and a line for each processor.
func readCPU(text string, u *isolation.Usage) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 8 && f[0] == "cpu":
			var ticks int64
			for _, i := range []int{1, 2, 3, 6, 7} {
				n, _ := strconv.ParseInt(f[i], 10, 64)
				ticks += max(0, min(n, 1<<40))
			}
			u.CPU = time.Duration(ticks) * 10 * time.Millisecond
		case len(f) > 0 && strings.HasPrefix(f[0], "cpu"):
			u.Now.CPUs++
		}
	}
}
