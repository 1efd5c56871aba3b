package jail

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/spawn"
)

// Config is a program to be started. The files stay the caller's.
type Config struct {
	Program string   // path
	Args    []string // without the program's name
	// Dir is an empty directory that becomes the root.
	Dir string
	// Files are the descriptors from 3 on. /proc/self/fd/N opens them again.
	Files []*os.File
	// Paths of this host that the program finds under the same names, read-only.
	// With a program that is linked to libraries those are added.
	Paths []string
	// InPlace: the program has its own path inside, and not another one: it finds
	// what it needs from there, and has no place to write to. Modules are libraries
	// that it loads later: what they need is there as well.
	InPlace bool
	Modules []string
	// KVM: the program finds /dev/kvm.
	KVM bool
	// UID is who the program is on the host, user and group, if root starts it; 0:
	// nobody.
	UID int
	// FileBytes bounds what it writes to one file.
	FileBytes uint64
	// Tasks are files of control groups of version 1 that it joins, and Group is
	// the directory of one of version 2 that it is in. nil: none.
	Tasks []*os.File
	Group *os.File
	// Session: the program outlives this process.
	Session bool
	// Started is told the process as soon as there is one.
	Started func(pid int) error
}

// Process is a running program.
type Process struct {
	PID    int
	pidfd  *os.File
	dir    string
	ended  chan struct{}
	status unix.WaitStatus // before ended is closed
	left   chan struct{}   // closed when it goes on without this process
	read   *os.File        // of what it says; nil: nothing is read
	said   *tail
	tails  sync.WaitGroup
	closer sync.Once
}

// Work is the directory that a program may write to, as it sees it. It is where
// the program starts.
const Work = "/run"

// nobody is who the program is, in its user namespace and, if root starts it, on
// the host.
const nobody = 65534

// Start starts a program.
func Start(s *spawn.Spawner, c *Config) (_ *Process, err error) {
	p := newProcess(c.Dir)
	if c.UID == 0 {
		c.UID = nobody
	}
	name := "/" + programName
	if c.InPlace {
		name = c.Program
	}
	mounts, err := makeRoot(c, name)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	p.read = r
	p.tails.Go(func() { p.said.fill(r) })
	spec := spawn.Spec{
		Path: name, Args: append([]string{programName}, c.Args...), Dir: Work,
		Files: append([]*os.File{null, w, w}, c.Files...), Tasks: c.Tasks, Group: c.Group, Mounts: mounts, Root: c.Dir,
		Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
			unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		Map: func(pid int) error { return mapNobody(pid, c.UID, c.KVM) }, Cred: &spawn.Credential{UID: nobody, GID: nobody, KeepGroups: os.Geteuid() != 0},
		DropCapabilities: true, NoNewPrivs: true,
		Rlimits: []spawn.Rlimit{{Resource: unix.RLIMIT_CORE}, {Resource: unix.RLIMIT_NOFILE, Cur: 1024, Max: 1024}, {Resource: unix.RLIMIT_FSIZE, Cur: c.FileBytes, Max: c.FileBytes}},
	}
	if !c.Session {
		spec.ParentDeathSignal = syscall.SIGKILL
	}
	if p.PID, p.pidfd, err = s.Start(spec); err != nil {
		return nil, err
	}
	p.watch(reap)
	if c.Started != nil {
		if err := c.Started(p.PID); err != nil {
			p.Kill()
			p.Wait()
			return nil, err
		}
	}
	return p, nil
}

const programName = "vmm"

// makeRoot makes what mounts are put on, and says which.
func makeRoot(c *Config, program string) ([]spawn.Mount, error) {
	if err := os.Chmod(c.Dir, 0o755); err != nil {
		return nil, err
	}
	const bind = unix.MS_BIND | unix.MS_REC
	const quiet = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	attr := uint64(quiet | unix.MOUNT_ATTR_NOEXEC)
	if c.InPlace { // with no place to write to
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	mounts := []spawn.Mount{{Source: c.Dir, Target: c.Dir, Flags: unix.MS_BIND, Attr: attr}}
	file := func(source, name string, attr uint64) error {
		target := filepath.Join(c.Dir, name)
		mounts = append(mounts, spawn.Mount{Source: source, Target: target, Flags: unix.MS_BIND, Attr: attr})
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, nil, 0o644)
	}
	for _, d := range []string{"dev", "proc", Work} {
		if err := os.Mkdir(filepath.Join(c.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(c.Dir, Work), c.UID, c.UID); err != nil {
			return nil, err
		}
	}
	if err := file(c.Program, program, quiet|unix.MOUNT_ATTR_RDONLY); err != nil {
		return nil, err
	}
	if c.KVM {
		if _, err := kvmGroup(); err != nil {
			return nil, err
		}
		if err := file(kvm, kvm, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return nil, err
		}
	}
	proc := filepath.Join(c.Dir, "proc")
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts = append(mounts,
		// One that has this program alone. Where the host's is not whole
		// (user_namespaces(7)) it is that one.
		spawn.Mount{Source: "proc", Target: proc, Type: "proc", Data: "subset=pid", Flags: flags, Optional: true},
		spawn.Mount{Source: "proc", Target: proc, Type: "proc", Flags: flags, Optional: true, Instead: true},
		spawn.Mount{Source: "/proc", Target: proc, Flags: bind, Attr: quiet | unix.MOUNT_ATTR_NOEXEC, Instead: true},
	)
	libraries, err := needs(c.Program, c.Modules)
	if err != nil {
		return nil, err
	}
	for _, path := range slices.Concat(libraries, c.Paths) {
		target := filepath.Join(c.Dir, path)
		info, err := os.Lstat(path)
		if err == nil && !slices.Contains(whole, path) {
			info, err = os.Stat(path) // a library's name is a link often
		}
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return nil, err
		}
		switch {
		case info.Mode()&os.ModeSymlink != 0 && slices.Contains(whole, path): // where /usr is merged
			to, err := os.Readlink(path)
			if err == nil {
				err = os.Symlink(to, target)
			}
			if err != nil {
				return nil, err
			}
		case info.IsDir():
			if err := os.MkdirAll(target, 0o755); err != nil {
				return nil, err
			}
			mounts = append(mounts, spawn.Mount{Source: path, Target: target, Flags: bind, Attr: quiet | unix.MOUNT_ATTR_RDONLY})
		case info.Mode()&os.ModeDevice != 0:
			if err := file(path, path, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
				return nil, err
			}
		default:
			if err := file(path, path, quiet|unix.MOUNT_ATTR_RDONLY); err != nil {
				return nil, err
			}
		}
	}
	return mounts, nil
}

// needs lists the libraries of a program that is not static, and of modules that
// it loads: what the dynamic linker says (ld.so(8), --list). Where that says
// nothing it is all places that have some.
func needs(program string, modules []string) ([]string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	defer f.Close()
	linker := ""
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 1<<12 {
			b, err := io.ReadAll(p.Open())
			if err != nil {
				return nil, fmt.Errorf("%s: %w", program, err)
			}
			linker = strings.TrimRight(string(b), "\x00")
		}
	}
	if linker == "" {
		return nil, nil
	}
	key := program
	for _, m := range append([]string{program}, modules...) {
		if info, err := os.Stat(m); err == nil {
			key += fmt.Sprintf(" %d %d", info.Size(), info.ModTime().UnixNano())
		}
	}
	if list, ok := libraries.Load(key); ok {
		return list.([]string), nil
	}
	list := []string{linker, "/etc/ld.so.cache"}
	for _, m := range append([]string{program}, modules...) {
		out, err := exec.Command(linker, "--list", m).Output()
		if err != nil {
			list = append(slices.Clone(whole), "/etc/ld.so.cache")
			break
		}
		for line := range strings.Lines(string(out)) {
			// "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f...)"
			_, rest, _ := strings.Cut(line, "=> ")
			if path, _, ok := strings.Cut(strings.TrimSpace(rest), " ("); ok && filepath.IsAbs(path) && !slices.Contains(list, path) {
				list = append(list, path)
			}
		}
	}
	libraries.Store(key, list)
	return list, nil
}

// whole are the directories that have libraries.
var whole = []string{"/usr", "/lib", "/lib64"}

// libraries remembers what needs has found: by program, size and time.
var libraries sync.Map

const kvm = "/dev/kvm"

// CheckKVM says why a program of a jail could not open KVM.
func CheckKVM() error {
	_, err := kvmGroup()
	return err
}

// kvmGroup is the group that it takes to open KVM; nobody's if it takes none.
func kvmGroup() (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(kvm, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: kvm, Err: err}
	}
	mode := st.Mode & 0o666
	switch {
	case mode&0o006 == 0o006:
		return nobody, nil
	case os.Geteuid() != 0: // who starts it is who it is on the host
		f, err := os.OpenFile(kvm, os.O_RDWR, 0)
		if err == nil {
			err = f.Close()
		}
		return nobody, err
	case mode&0o060 == 0o060 && st.Gid != 0:
		return int(st.Gid), nil
	}
	return 0, fmt.Errorf("%s is for root alone (mode %#o, group %d), and virtual machines are run as nobody: chgrp kvm %[1]s && chmod 660 %[1]s: %[4]w",
		kvm, st.Mode&0o777, st.Gid, isolation.ErrPermissionDenied)
}

// mapNobody maps one user (user_namespaces(7)). An ordinary caller's program is
// the caller on the host.
func mapNobody(pid, uid int, kvm bool) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	gid := uid
	if kvm {
		g, err := kvmGroup()
		if err != nil {
			return err
		}
		if g != nobody {
			gid = g
		}
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

func newProcess(dir string) *Process {
	return &Process{dir: dir, ended: make(chan struct{}), left: make(chan struct{}), said: new(tail)}
}

// Reopen finds a program again that another process has started with
// Config.Session.
func Reopen(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	p := newProcess("")
	p.PID, p.pidfd = pid, os.NewFile(uintptr(fd), "pidfd")
	p.watch((*Process).awaitEnd)
	return p, nil
}

// Leave closes what this process has of one that goes on without it.
func (p *Process) Leave() {
	close(p.left)
	if p.read != nil {
		p.read.Close()
	}
	p.closer.Do(func() { p.pidfd.Close() })
}

// Left is closed by Leave. Then nobody tells of the end.
func (p *Process) Left() <-chan struct{} { return p.left }

// watch tells of the end.
func (p *Process) watch(wait func(p *Process) unix.WaitStatus) {
	go func() {
		p.status = wait(p)
		select {
		case <-p.left:
			return
		default:
		}
		// What it said last is there when its end is told.
		p.tails.Wait()
		close(p.ended)
	}()
}

func reap(p *Process) (ws unix.WaitStatus) {
	rc, err := p.pidfd.SyscallConn()
	if err == nil {
		err = rc.Read(func(uintptr) bool {
			n, err := unix.Wait4(p.PID, &ws, unix.WNOHANG, nil)
			return n != 0 && err != unix.EINTR
		})
	}
	for err != nil { // the descriptor cannot be waited on
		select {
		case <-p.left:
			return ws
		default:
		}
		if _, werr := unix.Wait4(p.PID, &ws, 0, nil); werr != unix.EINTR {
			break
		}
	}
	return ws
}

// awaitEnd waits for the end of one that may be no child of this process, and reaps
// one that is.
func (p *Process) awaitEnd() (ws unix.WaitStatus) {
	rc, err := p.pidfd.SyscallConn()
	if err == nil {
		err = rc.Read(func(fd uintptr) bool {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0
		})
	}
	for err == nil {
		if _, werr := unix.Wait4(p.PID, &ws, unix.WNOHANG, nil); werr != unix.EINTR {
			break
		}
	}
	return ws
}

// Signal sends a signal.
func (p *Process) Signal(sig unix.Signal) error {
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return os.NewSyscallError("pidfd_send_signal", serr)
}

// Kill ends the program at once, whatever its state.
func (p *Process) Kill() { _ = p.Signal(unix.SIGKILL) } // it fails only if it has ended

// CPU is the processor time that the program has used by now
// (clock_getcpuclockid(3)); 0 once it is gone.
func (p *Process) CPU() time.Duration {
	select {
	case <-p.ended:
		return 0
	default:
	}
	const scheduler = 2 // CPUCLOCK_SCHED of the kernel's posix-timers.h
	var ts unix.Timespec
	if unix.ClockGettime(int32(^p.PID<<3|scheduler), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Ended is closed when the program is gone.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// KilledBy is the signal that killed the program, once it has ended; 0: it ended
// by itself.
func (p *Process) KilledBy() int {
	if p.status.Signaled() {
		return int(p.status.Signal())
	}
	return 0
}

// Wait waits for the program's end and closes what this process has of it.
func (p *Process) Wait() {
	<-p.ended
	p.tails.Wait()
	p.closer.Do(func() { p.pidfd.Close() })
}

// Said is the last of what the program wrote to its standard output and error.
func (p *Process) Said() string { return p.said.String() }

// Panicked returns the line by which a kernel, whose console is the program's
// output, said that it cannot go on; "" if it did not.
func (p *Process) Panicked() string {
	for line := range strings.Lines(p.Said()) {
		if i := strings.Index(line, "Kernel panic - "); i >= 0 {
			return strings.TrimSpace(line[i:])
		}
	}
	return ""
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
