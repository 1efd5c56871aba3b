package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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
	PID   int
	pidfd *os.File
	dir   string
	qmp   *monitor

	ended   chan struct{}
	status  unix.WaitStatus // before ended is closed
	console *tail           // what the guest's kernel says
	errors  *tail           // what QEMU says
	tails   sync.WaitGroup
}

// Start starts a machine. When it returns the machine runs: it boots, or goes
// on where the snapshot was taken.
func Start(ctx context.Context, s *spawn.Spawner, c *Config) (_ *Machine, err error) {
	m := &Machine{dir: c.Dir, ended: make(chan struct{}), console: new(tail), errors: new(tail)}
	if err := m.spawn(s, c); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	defer func() {
		if err != nil {
			m.Kill()
			m.Wait()
			err = fmt.Errorf("%w%s", err, m.LastWords())
		}
	}()
	if c.Started != nil {
		if err := c.Started(m.PID); err != nil {
			return nil, err
		}
	}
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

func (m *Machine) monitorSocket() string { return filepath.Join(m.dir, "q") }
func (m *Machine) guestSocket() string   { return filepath.Join(m.dir, "g") }

// nobody is who QEMU is, on the host and in its user namespace.
const nobody = 65534

func (m *Machine) spawn(s *spawn.Spawner, c *Config) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	pipe := func(t *tail) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		open = append(open, w)
		m.tails.Go(func() { t.fill(r) })
		return w, nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	open = append(open, null)
	console, err := pipe(m.console)
	if err != nil {
		return err
	}
	complaints, err := pipe(m.errors)
	if err != nil {
		return err
	}
	files := []*os.File{null, complaints, complaints}
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
	files = append(files, c.RAM, c.Disk, data, console)
	if c.Boot != nil {
		files = append(files, c.Boot.Kernel, c.Boot.Initrd)
	} else {
		files = append(files, c.State)
	}
	spec := spawn.Spec{
		Path: c.Program, Args: c.args(c), Dir: "/", Files: files, Tasks: c.Tasks, Group: c.Group,
		Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
			unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		Map: func(pid int) error { return mapNobody(pid, c.Accel) }, Cred: &spawn.Credential{UID: nobody, GID: nobody, KeepGroups: os.Geteuid() != 0},
		DropCapabilities: true, NoNewPrivs: true,
		Rlimits: []spawn.Rlimit{{Resource: unix.RLIMIT_CORE}, {Resource: unix.RLIMIT_NOFILE, Cur: 256, Max: 256}, {Resource: unix.RLIMIT_FSIZE, Cur: fileLimit(c), Max: fileLimit(c)}},
	}
	if !c.Session {
		spec.ParentDeathSignal = syscall.SIGKILL
	}
	m.PID, m.pidfd, err = s.Start(spec)
	if err != nil {
		return err
	}
	go func() {
		m.status = reap(m.pidfd, m.PID)
		// What it said last is there when its end is told.
		m.tails.Wait()
		close(m.ended)
	}()
	return nil
}

// fileLimit lets a machine that is booted write its memory's file and state.
func fileLimit(c *Config) uint64 {
	if c.Boot != nil {
		return uint64(c.MemoryMiB+64) << 20
	}
	return 1 << 20
}

// mapNobody maps one user: QEMU's (user_namespaces(7)). An ordinary caller's
// QEMU is the caller on the host. To open /dev/kvm takes its group.
func mapNobody(pid int, accel string) error {
	uid, gid := nobody, nobody
	dir := fmt.Sprintf("/proc/%d/", pid)
	var st unix.Stat_t
	if accel == KVM && unix.Stat("/dev/kvm", &st) == nil && st.Mode&0o006 != 0o006 {
		gid = int(st.Gid)
	}
	if os.Geteuid() != 0 {
		uid, gid = os.Geteuid(), os.Getegid()
		if err := write(dir+"setgroups", "deny"); err != nil {
			return err
		}
	}
	return errors.Join(write(dir+"gid_map", fmt.Sprintf("%d %d 1\n", nobody, gid)), write(dir+"uid_map", fmt.Sprintf("%d %d 1\n", nobody, uid)))
}

func write(name, data string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	return errors.Join(err, f.Close())
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

func reap(pidfd *os.File, pid int) (ws unix.WaitStatus) {
	rc, err := pidfd.SyscallConn()
	if err == nil {
		err = rc.Read(func(uintptr) bool {
			n, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil)
			return n != 0 && err != unix.EINTR
		})
	}
	for err != nil { // the descriptor cannot be waited on
		if _, werr := unix.Wait4(pid, &ws, 0, nil); werr != unix.EINTR {
			break
		}
	}
	return ws
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

// Kill ends the machine at once, whatever its state.
func (m *Machine) Kill() {
	rc, err := m.pidfd.SyscallConn()
	if err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// CPU is the processor time that QEMU has used by now, for the guest and itself
// (clock_getcpuclockid(3)); 0 once it is gone.
func (m *Machine) CPU() time.Duration {
	select {
	case <-m.ended:
		return 0
	default:
	}
	const scheduler = 2 // CPUCLOCK_SCHED of the kernel's posix-timers.h
	var ts unix.Timespec
	if unix.ClockGettime(int32(^m.PID<<3|scheduler), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Ended is closed when QEMU is gone.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Wait waits for QEMU's end and closes what this process has of it.
func (m *Machine) Wait() {
	<-m.ended
	m.tails.Wait()
	m.pidfd.Close()
	if m.qmp != nil {
		m.qmp.close()
	}
}

// KilledBy is the signal that killed QEMU, once it has ended; 0: it ended by
// itself.
func (m *Machine) KilledBy() int {
	if m.status.Signaled() {
		return int(m.status.Signal())
	}
	return 0
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
	for _, t := range []struct{ who, what string }{{"QEMU", m.errors.String()}, {"the guest's kernel", m.console.String()}} {
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
