package microvm

import (
	"context"
	"net"
	"os"
	"time"

	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/spawn"
)

// vmm makes virtual machines: QEMU, or Firecracker. What differs between them is
// in the file that has its name.
type vmm interface {
	caps() caps
	// boot starts a kernel, and restore goes on where a snapshot was taken. When
	// they return the machine runs.
	boot(ctx context.Context, s *spawn.Spawner, c *bootConfig) (vm, error)
	restore(ctx context.Context, s *spawn.Spawner, c *restoreConfig) (vm, error)
	// version asks the program for its version.
	version(ctx context.Context) (string, error)
}

// findVMM finds the one that a configuration means on this host.
func findVMM(c Config) (vmm, error) {
	q, err := findQEMU(c)
	if err != nil {
		return nil, err
	}
	return q, nil
}

func (e *engine) vmm() (vmm, error) { return findVMM(e.cfg) }

// caps is what the rest needs to know of a VMM.
type caps struct {
	path string   // of its program
	id   identity // of the program
	// port is the guest's channel: the name of a virtio serial port. Where it is
	// empty, vsockPort is one of vsock.
	port      string
	vsockPort uint32
	// accels are the accelerators that it has, the best first.
	accels []string
}

// machineConfig is what all machines are started with. The files stay the
// caller's.
type machineConfig struct {
	shape qemu.Shape
	dir   string   // empty, for the machine's sockets
	ram   *os.File // memory: one that boots gets it; else it is only read
	disk  *os.File // root disk, read-only
	// tasks are files of control groups that the VMM joins.
	tasks   []*os.File
	session bool // it outlives this process
	// started is told the process as soon as there is one.
	started func(pid int) error
}

type bootConfig struct {
	machineConfig
	kernel, initrd *os.File // memory files
	line           string   // the kernel's command line
}

type restoreConfig struct {
	machineConfig
	state *os.File // the devices', from its beginning
}

// vm is a running machine.
type vm interface {
	pid() int
	DialGuest(ctx context.Context) (net.Conn, error)
	// Snapshot stops the machine for good and writes the state of its devices. Its
	// memory is in the file that it booted with.
	Snapshot(ctx context.Context, state *os.File) error
	Freeze() error
	Thaw() error
	Kill()
	CPU() time.Duration
	Ended() <-chan struct{}
	Wait()
	Panicked() string
	LastWords() string
}
