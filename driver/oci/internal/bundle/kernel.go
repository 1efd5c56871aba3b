package bundle

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation/guest/plan"
)

// kernel adds what every container has from the kernel. The devices of /dev are
// those that the specification wants in every container and are not listed
// (config-linux.md, "Default Devices").
func (b *Bundle) kernel() {
	b.mount(
		specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=65536"}},
		specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	)
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		b.target(dir, false)
	}
	b.Shared = append(b.Shared, b.scratch(plan.Dir{Path: "/dev/shm", Mode: 0o1777, UID: -1, GID: -1}))
}

// As docker and containerd have them.
var (
	masked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"}
)
