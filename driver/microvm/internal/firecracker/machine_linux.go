package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/microvm/internal/jail"
	"github.com/axocoatl/isolation/internal/spawn"
)

// Config is a machine to be started. The files stay the caller's. Firecracker
// opens them again: for their modes it is nobody, or an ordinary caller.
type Config struct {
	MemoryMiB, CPUs int

	Program string   // path of firecracker
	Dir     string   // empty directory for the machine
	RAM     *os.File // memory: Boot's snapshot is written to it; else it is only read
	Disk    *os.File // root disk, read-only
	Data    *os.File // a second disk, read-only and of DataBytes; nil: one of zeroes
	Boot    *Boot
	State   *os.File // without Boot: the devices' state
	// Tasks are files of control groups of version 1 that Firecracker joins, and
	// Group is the directory of one of version 2 that it is in. nil: none.
	Tasks []*os.File
	Group *os.File
	// Session: the machine outlives this process.
	Session bool
	// Started is told the process as soon as there is one.
	Started func(pid int) error
	// StandIn is for a program that is not Firecracker: it finds these paths of the host,
	// and no KVM.
	StandIn []string
}

// Boot starts a kernel instead of a snapshot.
type Boot struct {
	Kernel, Initrd *os.File // memory files
	Append         string   // the kernel's command line
}

// The descriptors of Firecracker beside the standard ones. Those that a snapshot
// names are the same for all machines.
const (
	fdRAM = 3 + iota
	fdDisk
	fdData
	fdState
	fdKernel
	fdInitrd
)

func opened(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// DataBytes is the size of Config.Data.
const DataBytes = 64 << 30

// Names in the machine's directory. Firecracker makes these sockets.
const (
	apiSocket   = "api"
	vsockSocket = "vsock"
	rootDrive   = "root"
	dataDrive   = "data"
	// guestCID may be the same in all machines: each has a vsock of its own.
	guestCID = 3
)

// Machine is a running one.
type Machine struct {
	*jail.Process
	// Version is Firecracker's.
	Version string

	api   *client
	state *os.File // for Snapshot
}

// Start starts a machine. When it returns the machine runs: it boots, or goes
// on where the snapshot was taken.
func Start(ctx context.Context, s *spawn.Spawner, c *Config) (_ *Machine, err error) {
	m := &Machine{}
	if m.Process, err = m.spawn(s, c); err != nil {
		m.forget()
		return nil, fmt.Errorf("start Firecracker: %w", err)
	}
	defer func() {
		if err != nil {
			m.Kill()
			m.Wait()
			err = fmt.Errorf("firecracker: %w%s", err, m.LastWords())
		}
	}()
	m.api = newClient(func(ctx context.Context) (net.Conn, error) { return m.dial(ctx, apiSocket) })
	if m.Version, err = m.api.version(ctx); err != nil {
		return nil, err
	}
	if c.Boot != nil {
		return m, m.boot(ctx, c)
	}
	return m, m.api.call(ctx, "PUT", "/snapshot/load", snapshotLoad{
		SnapshotPath: opened(fdState), MemBackend: memBackend{"File", opened(fdRAM)}, ResumeVM: true,
	})
}

func (m *Machine) spawn(s *spawn.Spawner, c *Config) (*jail.Process, error) {
	data := c.Data
	if data == nil { // the guest knows one size
		fd, err := unix.MemfdCreate("data", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, os.NewSyscallError("memfd_create", err)
		}
		data = os.NewFile(uintptr(fd), "data")
		defer data.Close()
		if err := data.Truncate(DataBytes); err != nil {
			return nil, err
		}
	}
	files := []*os.File{c.RAM, c.Disk, data, c.State}
	limit := uint64(1 << 20)
	if c.Boot != nil {
		fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, os.NewSyscallError("memfd_create", err)
		}
		m.state = os.NewFile(uintptr(fd), "state")
		files = []*os.File{c.RAM, c.Disk, data, m.state, c.Boot.Kernel, c.Boot.Initrd}
		limit = uint64(c.MemoryMiB+64) << 20
	}
	return jail.Start(s, &jail.Config{
		Program: c.Program, Dir: c.Dir, Files: files, FileBytes: limit, KVM: c.StandIn == nil, Paths: c.StandIn,
		// Warnings would be one for each port that a kernel looks for.
		Args:  []string{"--api-sock", apiSocket, "--id", "axo", "--level", "Error"},
		Tasks: c.Tasks, Group: c.Group, Session: c.Session, Started: c.Started,
	})
}

// boot configures the machine and starts it.
func (m *Machine) boot(ctx context.Context, c *Config) error {
	for _, r := range []struct {
		path string
		body any
	}{
		{"/machine-config", machineConfig{c.CPUs, c.MemoryMiB}},
		{"/boot-source", bootSource{opened(fdKernel), opened(fdInitrd), c.Boot.Append}},
		{"/drives/" + rootDrive, drive{DriveID: rootDrive, PathOnHost: opened(fdDisk), IsReadOnly: true}},
		{"/drives/" + dataDrive, drive{DriveID: dataDrive, PathOnHost: opened(fdData), IsReadOnly: true}},
		{"/vsock", vsock{guestCID, vsockSocket}},
		{"/entropy", entropy{}},
		{"/actions", action{"InstanceStart"}},
	} {
		if err := m.api.call(ctx, "PUT", r.path, r.body); err != nil {
			return err
		}
	}
	return nil
}

// dial connects to a socket of Firecracker's, which may not be there yet.
func (m *Machine) dial(ctx context.Context, name string) (net.Conn, error) {
	for wait := 500 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		c, err := m.Dial(ctx, name)
		if err == nil || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return c, err
		}
		if err := m.pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// pause waits, unless the machine or ctx ends.
func (m *Machine) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.Ended():
		return errors.New("it has ended")
	case <-time.After(d):
		return nil
	}
}

// DialGuest connects to the guest's channel. A guest that boots is waited for.
func (m *Machine) DialGuest(ctx context.Context) (net.Conn, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		c, err := m.dial(ctx, vsockSocket)
		if err != nil {
			return nil, err
		}
		if err = handshake(ctx, c, GuestPort); err == nil {
			return c, nil
		}
		c.Close()
		if !errors.Is(err, errRefused) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			return nil, fmt.Errorf("vsock: %w", err)
		}
		if err := m.pause(ctx, wait); err != nil {
			return nil, fmt.Errorf("vsock: %w", err)
		}
	}
}

// Snapshot stops the machine for good and writes the state of its devices. Its
// memory is in Config.RAM then.
func (m *Machine) Snapshot(ctx context.Context, state *os.File) error {
	if err := m.api.call(ctx, "PATCH", "/vm", vmState{"Paused"}); err != nil {
		return err
	}
	if err := m.api.call(ctx, "PUT", "/snapshot/create", snapshotCreate{"Full", opened(fdState), opened(fdRAM)}); err != nil {
		return err
	}
	if st, err := m.state.Stat(); err != nil || st.Size() > maxState {
		return errors.Join(err, errors.New("the state of the devices is too large"))
	}
	_, err := io.Copy(state, io.NewSectionReader(m.state, 0, maxState))
	return err
}

// maxState is more than the state of a machine's devices has, in bytes.
const maxState = 16 << 20

// Freeze stops Firecracker itself (SIGSTOP): the machine uses no processor,
// whatever its guest does. Thaw has it go on.
func (m *Machine) Freeze() error { return m.Signal(unix.SIGSTOP) }

// Thaw undoes Freeze.
func (m *Machine) Thaw() error { return m.Signal(unix.SIGCONT) }

// Wait waits for Firecracker's end and closes what this process has of it.
func (m *Machine) Wait() {
	m.Process.Wait()
	m.forget()
}

func (m *Machine) forget() {
	if m.state != nil {
		m.state.Close()
	}
}

// LastWords is what Firecracker and the guest's kernel said at last, for an error.
func (m *Machine) LastWords() string {
	if s := strings.TrimSpace(m.Said()); s != "" {
		return fmt.Sprintf("; it and the guest's kernel said: %.1000q", s[max(0, len(s)-1000):])
	}
	return ""
}
