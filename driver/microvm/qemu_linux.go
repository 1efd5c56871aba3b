package microvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/spawn"
)

// qemuVMM is the QEMU of this host.
type qemuVMM struct {
	path string
	id   identity
}

func findQEMU(c Config) (*qemuVMM, error) {
	path := c.QEMU
	if path == "" {
		var err error
		if path, err = exec.LookPath("qemu-system-x86_64"); err != nil {
			return nil, proc.Unsupported("microVMs without QEMU", "qemu-system-x86_64 (Debian: apt install qemu-system-x86), then "+setupFix)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("QEMU: %w", err)
	}
	defer f.Close()
	id, err := identify(f)
	return &qemuVMM{path, id}, err
}

func (q *qemuVMM) caps() caps {
	return caps{path: q.path, id: q.id, port: qemu.Port, accels: []string{qemu.KVM, qemu.TCG}}
}

// version asks QEMU for it: "7.2.22 (Debian 1:7.2+dfsg-7)".
func (q *qemuVMM) version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, q.path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", q.path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	s, ok := strings.CutPrefix(line, "QEMU emulator version ")
	if !ok {
		return "", fmt.Errorf("%s is no QEMU: it says %.80q: %w", q.path, line, isolation.ErrFailedPrecondition)
	}
	return s, nil
}

// qemuMachine implements [vm].
type qemuMachine struct{ *qemu.Machine }

func (m qemuMachine) pid() int { return m.PID }

func (q *qemuVMM) config(c *machineConfig) *qemu.Config {
	return &qemu.Config{
		Shape: c.shape, Program: q.path, Dir: c.dir, RAM: c.ram, Disk: c.disk, Tasks: c.tasks, Session: c.session, Started: c.started,
	}
}

func (q *qemuVMM) boot(ctx context.Context, s *spawn.Spawner, c *bootConfig) (vm, error) {
	qc := q.config(&c.machineConfig)
	qc.Boot = &qemu.Boot{Kernel: c.kernel, Initrd: c.initrd, Append: c.line}
	return startQEMU(ctx, s, qc)
}

func (q *qemuVMM) restore(ctx context.Context, s *spawn.Spawner, c *restoreConfig) (vm, error) {
	qc := q.config(&c.machineConfig)
	qc.State = c.state
	return startQEMU(ctx, s, qc)
}

func startQEMU(ctx context.Context, s *spawn.Spawner, c *qemu.Config) (vm, error) {
	m, err := qemu.Start(ctx, s, c)
	if err != nil {
		return nil, err
	}
	return qemuMachine{m}, nil
}
