package microvm

import (
	"context"

	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/spawn"
)

// qemuVMM is the QEMU of this host.
type qemuVMM struct {
	path string
	id   identity
}

func findQEMU(c Config) (vmm, error) {
	path, id, err := findProgram(c.QEMU, "qemu-system-x86_64", "QEMU", "qemu-system-x86_64 (Debian: apt install qemu-system-x86)")
	if err != nil {
		return nil, err
	}
	return &qemuVMM{path, id}, nil
}

func (q *qemuVMM) caps() caps {
	return caps{
		path: q.path, id: q.id, port: qemu.Port, accels: []string{qemu.KVM, qemu.TCG}, dataBytes: qemu.DataBytes,
		modules: []string{"virtio_mmio", "virtio_console", "virtio_blk", "overlay", "erofs"}, options: "reboot=t",
	}
}

// version is like "7.2.22 (Debian 1:7.2+dfsg-7)".
func (q *qemuVMM) version(ctx context.Context) (string, error) {
	return programVersion(ctx, q.path, "QEMU emulator version ", "QEMU")
}

// qemuMachine implements [vm].
type qemuMachine struct{ *qemu.Machine }

func (m qemuMachine) pid() int { return m.PID }

func (q *qemuVMM) config(c *machineConfig) *qemu.Config {
	return &qemu.Config{
		Shape: c.shape, Program: q.path, Dir: c.dir, RAM: c.ram, Disk: c.disk, Data: c.data, Tasks: c.tasks, Group: c.group, Session: c.session, UID: c.uid, Started: c.started,
	}
}

func (q *qemuVMM) boot(ctx context.Context, s *spawn.Spawner, c *bootConfig) (vm, error) {
	qc := q.config(&c.machineConfig)
	qc.Boot = &qemu.Boot{Kernel: c.kernel, Initrd: c.initrd, Append: c.line}
	return startQEMU(ctx, s, qc)
}

func (q *qemuVMM) restore(ctx context.Context, s *spawn.Spawner, c *restoreConfig) (vm, error) {
	qc := q.config(&c.machineConfig)
	qc.State, qc.Devices = c.state, c.live
	return startQEMU(ctx, s, qc)
}

func startQEMU(ctx context.Context, s *spawn.Spawner, c *qemu.Config) (vm, error) {
	m, err := qemu.Start(ctx, s, c)
	if err != nil {
		return nil, err
	}
	return qemuMachine{m}, nil
}
