package microvm

import (
	"context"
	"fmt"

	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/microvm/internal/firecracker"
	"github.com/axocoatl/isolation/driver/microvm/internal/jail"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/spawn"
)

// firecrackerVMM is the Firecracker of this host.
type firecrackerVMM struct {
	path    string
	id      identity
	standIn []string
}

func findFirecracker(c Config) (vmm, error) {
	path, id, err := findProgram(c.Firecracker, "firecracker", "Firecracker", "the program firecracker in PATH (https://github.com/firecracker-microvm/firecracker/releases; make test-firecracker FIRECRACKER=FILE tries one, also without KVM)")
	if err != nil {
		return nil, err
	}
	if c.standIn == nil {
		c.standIn = standIn
	}
	if c.standIn == nil {
		if err := jail.CheckKVM(); err != nil {
			return nil, proc.Unsupported(fmt.Sprintf("Firecracker without KVM (%v)", err), "KVM; make test-firecracker FIRECRACKER=FILE tries Firecracker in an emulated machine that has it")
		}
	}
	return &firecrackerVMM{path, id, c.standIn}, nil
}

func (f *firecrackerVMM) caps() caps {
	c := caps{
		path: f.path, id: f.id, vsockPort: firecracker.GuestPort, accels: []string{qemu.KVM}, dataBytes: firecracker.DataBytes,
		modules: []string{"virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport", "virtio_rng", "overlay", "erofs"},
		// Its keyboard controller does nothing but a reset; it has one serial port.
		options: "reboot=k i8042.noaux i8042.nomux i8042.dumbkbd 8250.nr_uarts=1",
		reopens: true, resets: true,
	}
	if f.standIn != nil { // which emulates, and has no vsock that a guest could find
		c.accels, c.port, c.modules = []string{qemu.TCG}, qemu.Port, append(c.modules, "virtio_console")
	}
	return c
}

// version is like "1.16.1".
func (f *firecrackerVMM) version(ctx context.Context) (string, error) {
	return programVersion(ctx, f.path, "Firecracker v", "Firecracker")
}

// firecrackerMachine implements [vm].
type firecrackerMachine struct{ *firecracker.Machine }

func (m firecrackerMachine) pid() int { return m.PID }

func (f *firecrackerVMM) config(c *machineConfig) *firecracker.Config {
	return &firecracker.Config{
		MemoryMiB: c.shape.MemoryMiB, CPUs: c.shape.CPUs, Program: f.path, Dir: c.dir, RAM: c.ram, Disk: c.disk, Data: c.data, Tasks: c.tasks, Group: c.group,
		Session: c.session, Started: c.started, StandIn: f.standIn,
	}
}

func (f *firecrackerVMM) boot(ctx context.Context, s *spawn.Spawner, c *bootConfig) (vm, error) {
	fc := f.config(&c.machineConfig)
	fc.Boot = &firecracker.Boot{Kernel: c.kernel, Initrd: c.initrd, Append: c.line}
	return startFirecracker(ctx, s, fc)
}

func (f *firecrackerVMM) restore(ctx context.Context, s *spawn.Spawner, c *restoreConfig) (vm, error) {
	fc := f.config(&c.machineConfig)
	fc.State = c.state
	return startFirecracker(ctx, s, fc)
}

func startFirecracker(ctx context.Context, s *spawn.Spawner, c *firecracker.Config) (vm, error) {
	m, err := firecracker.Start(ctx, s, c)
	if err != nil {
		return nil, err
	}
	return firecrackerMachine{m}, nil
}
