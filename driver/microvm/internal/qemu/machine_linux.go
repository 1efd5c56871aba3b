package qemu

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/microvm/internal/jail"
	"github.com/axocoatl/isolation/internal/spawn"
)

// Config is a machine to be started. The files stay the caller's.
type Config struct {
	Shape
	Program string   // path of qemu-system-x86_64
	Dir     string   // empty directory for the machine's sockets
	RAM     *os.File // memory: for Boot it gets it; else it is only read
	Disk    *os.File // root disk, read-only
	Data    *os.File // a second disk, read-only and of DataBytes; nil: one of zeroes
	Boot    *Boot
	State   *os.File // without Boot: the devices' state, from its beginning
	Devices bool     // State is one of Capture
	// Tasks are files of control groups of version 1 that QEMU joins, and Group is
	// the directory of one of version 2 that it is in.
	Tasks []*os.File
	Group *os.File
	// UID is who QEMU is on the host; 0: nobody.
	UID int
	// Session: the machine outlives this process.
	Session bool
	// Started is told the process as soon as there is one.
	Started func(pid int) error
}

// Boot starts a kernel instead of a snapshot.
type Boot struct {
	Kernel, Initrd *os.File // memory files
	Append         string   // the kernel's command line
}

// Machine is a running one.
type Machine struct {
	*jail.Process
	dir  string
	at   *os.File // that directory, by which its sockets have short names
	qmp  *monitor
	read *os.File // of the console

	ended   chan struct{} // closed when QEMU has, and all is read that the guest's kernel said
	console *tail
	tails   sync.WaitGroup
}

// Start starts a machine. When it returns the machine runs: it boots, or goes
// on where the snapshot was taken.
func Start(ctx context.Context, s *spawn.Spawner, c *Config) (_ *Machine, err error) {
	m := newMachine(c.Dir)
	if err := m.enter(); err != nil {
		return nil, err
	}
	if err := m.spawn(s, c); err != nil {
		m.at.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	defer func() {
		if err != nil {
			m.Kill()
			m.Wait()
			err = fmt.Errorf("%w%s", err, m.LastWords())
		}
	}()
	// The socket was there before QEMU: this waits for its greeting.
	if m.qmp, err = dialMonitor(ctx, m.monitorSocket()); err != nil {
		return nil, err
	}
	if c.Boot != nil {
		return m, nil
	}
	if !c.Devices {
		if err := m.qmp.ignoreShared(ctx); err != nil {
			return nil, err
		}
	}
	if _, err := m.qmp.do(ctx, "migrate-incoming", map[string]string{"uri": fmt.Sprintf("fd:%d", fdState)}, nil); err != nil {
		return nil, err
	}
	if err := m.qmp.migrated(ctx); err != nil {
		return nil, err
	}
	// The snapshot's machine was stopped.
	_, err = m.qmp.do(ctx, "cont", nil, nil)
	return m, err
}

func newMachine(dir string) *Machine {
	return &Machine{dir: dir, ended: make(chan struct{}), console: new(tail)}
}

func (m *Machine) enter() (err error) {
	m.at, err = os.Open(m.dir)
	return err
}

// However long the directory's name is, a socket's has at most 108 bytes (unix(7)).
func (m *Machine) socket(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", m.at.Fd(), name)
}
func (m *Machine) monitorSocket() string { return m.socket("q") }
func (m *Machine) guestSocket() string   { return m.socket("g") }

func (m *Machine) spawn(s *spawn.Spawner, c *Config) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	open = append(open, null)
	var files []*os.File
	for _, path := range []string{m.guestSocket(), m.monitorSocket()} {
		l, err := listen(path)
		if err != nil {
			return err
		}
		open = append(open, l)
		files = append(files, l)
	}
	data := c.Data
	if data == nil {
		data = null
	}
	r, console, err := os.Pipe()
	if err != nil {
		return err
	}
	open = append(open, console)
	m.read = r
	m.tails.Go(func() { m.console.fill(r) })
	files = append(files, c.RAM, c.Disk, data, console)
	if c.Boot != nil {
		files = append(files, c.Boot.Kernel, c.Boot.Initrd)
	} else {
		files = append(files, c.State)
	}
	root := filepath.Join(c.Dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	program, err := filepath.EvalSymlinks(c.Program)
	if err != nil {
		return err
	}
	modules, paths := installed(program, c.Accel)
	m.Process, err = jail.Start(s, &jail.Config{
		Program: program, InPlace: true, Args: append(c.args(c)[1:], firmware(paths)...), Dir: root, Files: files, Modules: modules, Paths: slices.Concat(modules, paths),
		KVM: c.Accel == KVM, UID: c.UID, FileBytes: fileLimit(c), Tasks: c.Tasks, Group: c.Group, Session: c.Session, Started: c.Started,
	})
	if err != nil {
		return err
	}
	m.watch()
	return nil
}

// installed finds what QEMU loads while it runs: the emulator, where that is a
// module, and firmware.
func installed(program, accel string) (modules, data []string) {
	prefix := filepath.Dir(filepath.Dir(program))
	if accel == TCG {
		for _, dir := range []string{"lib/*/qemu", "lib64/qemu", "lib/qemu"} {
			list, _ := filepath.Glob(filepath.Join(prefix, dir, "accel-tcg-x86_64.so")) // the pattern is well-formed
			modules = append(modules, list...)
		}
	}
	for _, dir := range []string{"share/qemu", "share/seabios"} {
		data = append(data, filepath.Join(prefix, dir))
	}
	return modules, data
}

// firmware says where QEMU finds its firmware, and which it takes. Debian's, from
// version 8 on, knows one place only, and what it has there for microvm by default is
// SeaBIOS, without the tables by which the guest's kernel finds its devices.
func firmware(dirs []string) (args []string) {
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			args = append(args, "-L", dir)
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, qboot)); err == nil {
			return append(args, "-bios", qboot)
		}
	}
	return args
}

// qboot is firmware that does nothing but start a kernel.
const qboot = "qboot.rom"

// fileLimit lets a machine that is booted write its memory's file and state.
func fileLimit(c *Config) uint64 {
	if c.Boot != nil {
		return uint64(c.MemoryMiB+64) << 20
	}
	return 1 << 20
}

// listen makes a listening unix socket, whose name stays when it is closed.
func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}

// DialGuest connects to the guest's channel.
func (m *Machine) DialGuest(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", m.guestSocket())
}

// Snapshot stops the machine for good and writes the state of its devices. Its
// memory is in Config.RAM then.
func (m *Machine) Snapshot(ctx context.Context, state *os.File) error {
	if _, err := m.qmp.do(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := m.qmp.ignoreShared(ctx); err != nil {
		return err
	}
	if _, err := m.qmp.do(ctx, "getfd", map[string]string{"fdname": "state"}, state); err != nil {
		return err
	}
	if _, err := m.qmp.do(ctx, "migrate", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	return m.qmp.migrated(ctx)
}

// Ended is closed when QEMU is gone.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Wait waits for QEMU's end and closes what this process has of it.
func (m *Machine) Wait() {
	if m.Process != nil {
		<-m.ended
		m.Process.Wait()
	}
	m.at.Close()
	if m.qmp != nil {
		m.qmp.close()
	}
}

// Panicked returns the line by which the guest's kernel said that it cannot go
// on; "" if it did not.
func (m *Machine) Panicked() string {
	for line := range strings.Lines(m.console.String()) {
		if i := strings.Index(line, "Kernel panic - "); i >= 0 {
			return strings.TrimSpace(line[i:])
		}
	}
	return ""
}

// LastWords is what QEMU and the guest's kernel said at last, for an error.
func (m *Machine) LastWords() string {
	var out strings.Builder
	for _, t := range []struct{ who, what string }{{"QEMU", m.Said()}, {"the guest's kernel", m.console.String()}} {
		if s := strings.TrimSpace(t.what); s != "" {
			fmt.Fprintf(&out, "; %s said: %.1000q", t.who, s[max(0, len(s)-1000):])
		}
	}
	return out.String()
}

// tail keeps the last of what is written to a pipe.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 16 << 10

func (t *tail) fill(r *os.File) {
	defer r.Close()
	var b [4096]byte
	for {
		n, err := r.Read(b[:])
		t.mu.Lock()
		t.buf = append(t.buf, b[:n]...)
		t.buf = t.buf[max(0, len(t.buf)-tailBytes):]
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// MemoryFile makes a file in memory; its content is that of r.
func MemoryFile(name string, r io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if r != nil {
		if _, err := io.Copy(f, r); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// Seal makes a memory file one that nobody can change any more, also those who
// may open it for writing: QEMU before 8.2 does.
func Seal(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return os.NewSyscallError("fcntl", err)
}
