package microvm

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
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
	find := findQEMU
	if c.Engine == Firecracker {
		find = findFirecracker
	}
	return find(c)
}

// vmmNames are people's.
var vmmNames = map[string]string{QEMU: "QEMU", Firecracker: "Firecracker"}

// findProgram finds a VMM's program.
func findProgram(path, name, what, install string) (string, identity, error) {
	if path == "" {
		var err error
		if path, err = exec.LookPath(name); err != nil {
			return "", identity{}, proc.Unsupported("microVMs without "+what, install+", then "+setupFix)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return "", identity{}, fmt.Errorf("%s: %w", what, err)
	}
	defer f.Close()
	id, err := identify(f)
	return path, id, err
}

// programVersion asks a program for its version, which comes after a prefix in
// the first line.
func programVersion(ctx context.Context, path, prefix, what string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	s, ok := strings.CutPrefix(line, prefix)
	if !ok {
		return "", fmt.Errorf("%s is no %s: it says %.80q: %w", path, what, line, isolation.ErrFailedPrecondition)
	}
	return s, nil
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
	// dataBytes is the size of the disk of copied directories; 0: there is none.
	dataBytes int64
	// modules are what the guest's kernel needs, and options go into its command
	// line.
	modules []string
	options string
	// reopens: it opens files by path, as nobody.
	reopens bool
	// resets: a restored guest may lose its first connection.
	resets bool
}

// machineConfig is what all machines are started with. The files stay the
// caller's.
type machineConfig struct {
	shape qemu.Shape
	dir   string   // empty, for the machine's sockets
	ram   *os.File // memory: one that boots gets it; else it is only read
	disk  *os.File // root disk, read-only
	data  *os.File // disk of copied directories, read-only; nil: none
	// tasks are files of control groups of version 1 that the VMM joins, and group is
	// the directory of one of version 2 that it is in.
	tasks   []*os.File
	group   *os.File
	session bool // it outlives this process
	// uid is who the VMM is on the host; 0: nobody, or who this process is.
	uid int
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
	live  bool     // it is one of living.Capture
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
	// KilledBy is the signal that killed the VMM, once it has ended; 0: it ended by
	// itself.
	KilledBy() int
	Wait()
	Panicked() string
	LastWords() string
}

// living is a vm that can be copied while it lives.
type living interface {
	vm
	// Capture stops the machine and returns the state of its devices. Its memory
	// stays as it is until Continue.
	Capture(ctx context.Context) (state []byte, err error)
	Continue(ctx context.Context) error
	// RAM opens the file that its memory started from, and Dirty calls put with
	// what differs from that in a stopped machine.
	RAM() (*os.File, error)
	Dirty(size int64, put func(offset int64, b []byte) error) error
	// Find opens the file that it has open and is tells.
	Find(is func(f *os.File) bool) (*os.File, error)
}
