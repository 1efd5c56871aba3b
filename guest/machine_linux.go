package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// machine is what the guest has beside the rest when it is the first process of
// a virtual machine. It stays in the initial RAM file system. Programs are in a
// mount namespace of their own, in which their root is at the bottom: neither
// this process nor its channel has a name there.
type machine struct {
	plan.Machine
	root   *os.File // O_PATH of the programs'
	stage  *os.File // O_PATH of the file system of what they write
	random *os.File
	ids    map[string]*idFile // by name in idDir
	groups groups
	mark   atomic.Pointer[[]byte] // of the token of the last SYNC

	mu     sync.Mutex // one SYNC, MOUNT or POWER at a time
	mounts []string
	name   string // of the last SYNC
	limits limits // likewise
	frozen bool   // programs are
}

// runDir is where the guest has its own files, and idDir those of them that
// programs see under other names.
const (
	runDir = "/run/axo"
	idDir  = runDir + "/id"
)

// inMachine boots the rest of a virtual machine and serves its host. It does not
// return while all is well: the kernel panics without its first process.
func inMachine() error {
	g := newGuest()
	g.vm = &machine{}
	begin := time.Now()
	step := func(name string, f func() error) error {
		err := f()
		now := time.Now()
		g.steps = append(g.steps, wire.Step{Name: name, Nanoseconds: uint64(now.Sub(begin))})
		begin = now
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	var open func(failed error) error
	err := step("mounts", g.vm.mountKernel)
	if err == nil {
		err = step("modules", loadModules)
	}
	if err == nil {
		err = step("channel", func() error {
			b, err := os.ReadFile(plan.MachineFile)
			if err == nil {
				err = g.vm.Parse(b)
			}
			if err == nil {
				open, err = g.channel()
			}
			return err
		})
	}
	if err == nil {
		if gerr := step("groups", g.vm.groups.make); gerr != nil {
			// Without, only the machine itself is a limit.
			g.notes = append(g.notes, gerr.Error())
		}
		if err = step("root", g.machineRoot); err == nil {
			g.needsSync.Store(true)
		}
	}
	if open == nil {
		return err
	}
	return open(err)
}

// mountKernel mounts what the guest itself needs of the kernel.
func (m *machine) mountKernel() error {
	for _, fs := range []struct{ kind, target, data string }{
		{"devtmpfs", "/dev", "mode=755"}, {"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/run", "mode=755"},
	} {
		if err := os.MkdirAll(fs.target, 0o755); err != nil {
			return err
		}
		err := unix.Mount(fs.kind, fs.target, fs.kind, unix.MS_NOSUID|unix.MS_NOEXEC, fs.data)
		if err != nil && err != unix.EBUSY { // the kernel may have mounted /dev itself
			return &os.PathError{Op: "mount", Path: fs.target, Err: err}
		}
	}
	for _, dir := range []string{runDir, idDir, runDir + "/image", runDir + "/stage"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	var err error
	if m.random, err = os.OpenFile("/dev/urandom", os.O_RDWR, 0); err != nil {
		return err
	}
	// No swap, and no memory of this process in a core file.
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// loadModules loads what the list names (finit_module(2)).
func loadModules() error {
	list, err := os.ReadFile(plan.ModuleList)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(fdOf(f), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return &os.PathError{Op: "finit_module", Path: name, Err: err}
		}
	}
	return nil
}

// deviceWait bounds the wait for a device, which the kernel may find late.
const deviceWait = 10 * time.Second

// await tries until it works, or the device has had its time.
func await(f func() error) error {
	end := time.Now().Add(deviceWait)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(wait)
	}
}

// channel opens the way to the host. What it returns serves it, or says on it
// what has failed.
func (g *guest) channel() (func(error) error, error) {
	switch {
	case g.vm.Port != "" && (g.vm.VsockPort == 0 || hasSerial()):
		var f *os.File
		err := await(func() (err error) {
			f, err = openPort(g.vm.Port)
			return err
		})
		return func(failed error) error { return g.servePort(f, failed) }, err
	case g.vm.VsockPort != 0:
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("socket", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: g.vm.VsockPort}); err != nil {
			return nil, os.NewSyscallError("bind", err)
		}
		if err := unix.Listen(fd, 8); err != nil {
			return nil, os.NewSyscallError("listen", err)
		}
		return func(failed error) error {
			if failed == nil {
				return g.listen(fd)
			}
			l, err := accept(fd)
			if err != nil {
				return errors.Join(failed, err)
			}
			return g.serveOne(l, failed)
		}, nil
	}
	return nil, errors.New("the machine has neither port nor vsock_port")
}

// hasSerial reports whether the machine has a virtio serial device. It is there
// as soon as its module is.
func hasSerial() bool {
	list, _ := filepath.Glob("/sys/bus/virtio/drivers/virtio_console/virtio*") // no bad pattern
	return len(list) > 0
}

// openPort opens the virtio serial port of a name. There is no udev that would
// make links of names.
func openPort(name string) (*os.File, error) {
	list, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range list {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == name {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR|unix.O_NONBLOCK, 0)
		}
	}
	return nil, fmt.Errorf("there is no virtio serial port %q", name)
}

// servePort serves a serial port. It has no connections: it is read until the
// host's end is closed, and waited for until it is open again. A host that comes
// back at once may not be noticed by that, and sends the mark of its token and a
// number, which are answered by the same, so that it too knows what is new.
func (g *guest) servePort(f *os.File, failed error) error {
	again := &reopened{}
	for {
		_ = f.SetDeadline(time.Time{})
		// Before the host is there: a copy of an emulated machine has the less to do.
		s := &stream{in: f, out: f, keep: true, rest: again.rest}
		l := newLink(s)
		if err := connected(f); err != nil {
			return err
		}
		answer := again.answer
		again = &reopened{}
		if s.write(answer, -1) != nil {
			continue // closed again
		}
		s.mark = func() []byte {
			if m := g.vm.mark.Load(); m != nil {
				return *m
			}
			return nil
		}
		if failed != nil {
			_ = g.serveOne(l, failed)
			l.end()
			time.Sleep(time.Second)
			continue
		}
		// Any other end of a connection is followed by the next one.
		_ = errors.As(g.serve(l), &again)
	}
}

// connected waits until the host has opened its end of a port. Until then a poll
// says POLLHUP; when that changes the kernel wakes who waits.
func connected(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = rc.Write(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		for {
			if _, perr = unix.Poll(p, 0); perr != unix.EINTR {
				return perr != nil || p[0].Revents&unix.POLLHUP == 0
			}
		}
	})
	return errors.Join(err, perr)
}

const cgroupDir = "/sys/fs/cgroup"

// make makes the group of all programs: of version 2, or where that has no
// memory controller, of version 1.
func (gs *groups) make() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := os.NewSyscallError("mount cgroup2", unix.Mount("cgroup2", cgroupDir, "cgroup2", flags, ""))
	has, _ := os.ReadFile(cgroupDir + "/cgroup.controllers")
	if !slices.Contains(strings.Fields(string(has)), cgroup.Memory) {
		if err == nil {
			err = os.NewSyscallError("umount", unix.Unmount(cgroupDir, 0))
		}
		if terr := unix.Mount("cgroups", cgroupDir, "tmpfs", flags, "mode=755"); terr != nil {
			return os.NewSyscallError("mount tmpfs", terr)
		}
		for _, c := range []string{cgroup.Memory, cgroup.Pids, cgroup.CPU, cgroup.CPUAcct} {
			dir := filepath.Join(cgroupDir, c)
			err = errors.Join(err, os.Mkdir(dir, 0o755), os.NewSyscallError("mount cgroup "+c, unix.Mount("cgroup", dir, "cgroup", flags, c)))
		}
	}
	t := cgroup.Find()
	if !t.Any() {
		return err
	}
	// All controllers, whatever is limited at first.
	all, err := t.Create("programs", cgroup.Limits{CPUs: maxCPUs})
	if err != nil {
		return err
	}
	below, err := all.Below()
	if err != nil {
		return err
	}
	gs.all, gs.tree = all, below
	return all.Limit(cgroup.Limits{})
}

// maxCPUs is more than a machine has.
const maxCPUs = 1024

// machineRoot makes the programs' root, and has the thread that starts them, and
// those that look at it, enter it.
func (g *guest) machineRoot() error {
	m := g.vm
	g.plan = m.Plan
	p := &g.plan
	if err := completePlan(p); err != nil {
		return err
	}
	image := m.Image.Path
	if m.Image.Device != "" {
		image = runDir + "/image"
		if err := mountDisk(m.Image, image, unix.MS_RDONLY|unix.MS_NODEV); err != nil {
			return fmt.Errorf("image: %w", err)
		}
	}
	if image == "" {
		return errors.New("the machine has no image")
	}
	p.Root.Overlay = []plan.Layer{{Source: image}}
	p.Staging = runDir + "/stage"
	m.ids = map[string]*idFile{}
	for name, id := range map[string]string{"machine-id": strings.Repeat("0", 32), "boot_id": "00000000-0000-4000-8000-000000000000"} {
		f, err := os.OpenFile(filepath.Join(idDir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return err
		}
		m.ids[name] = &idFile{f: f}
		if err := m.ids[name].set(id); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	var init, ns *os.File
	err := g.spawner.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if ns, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		if init, err = g.makeRoot(); err != nil {
			return err
		}
		m.root, err = os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		return err
	})
	if err != nil {
		return err
	}
	defer init.Close()
	enter := func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return os.NewSyscallError("setns", unix.Setns(fdOf(ns), unix.CLONE_NEWNS))
	}
	g.lookers.enter, g.filers.enter = enter, enter
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return g.confine(init)
}

// mountDisk mounts a disk that may not be there yet.
func mountDisk(d plan.Disk, target string, flags uintptr) error {
	if strings.Contains(d.Device, "/") {
		return fmt.Errorf("device %q is not a name in /dev", d.Device)
	}
	return await(func() error {
		err := unix.Mount("/dev/"+d.Device, target, d.Type, flags, d.Data)
		if err != nil {
			return &os.PathError{Op: "mount " + d.Type, Path: "/dev/" + d.Device, Err: err}
		}
		return nil
	})
}

// switchRoot puts the new root at the bottom of the mount namespace. pivot_root
// does not work on the initial RAM file system (pivot_root(2), NOTES), which
// stays below and has no name any more; what was mounted there is taken away.
func switchRoot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "umount", Path: dir, Err: err}
		}
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return os.NewSyscallError("mount move", err)
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	return unix.Chdir("/")
}

// completePlan adds what every sandbox has.
func completePlan(p *plan.Plan) error {
	if p.Hostname == "" {
		p.Hostname = "sandbox"
	}
	if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	if p.Root.Size == 0 {
		var si unix.Sysinfo_t
		if err := unix.Sysinfo(&si); err != nil {
			return os.NewSyscallError("sysinfo", err)
		}
		p.Root.Size = int64(si.Totalram) * int64(si.Unit) / 2
	}
	if p.Root.Inodes == 0 {
		p.Root.Inodes = 1 << 18
	}
	pr := &p.Process
	if pr.User == "" && pr.UID == 0 {
		pr.UID, pr.GID, pr.NoNewPrivs = 1000, 1000, true
	}
	if pr.OOMScoreAdj == 0 {
		pr.OOMScoreAdj = 1000
	}
	if len(p.Mounts) == 0 {
		kernelMounts(p)
	}
	// Over what the kernel and the image say: it must differ between clones.
	p.Mounts = append(p.Mounts,
		plan.Mount{Target: "/proc/sys/kernel/random/boot_id", Source: idDir + "/boot_id", Attr: unix.MOUNT_ATTR_RDONLY},
		plan.Mount{Target: "/etc/machine-id", Source: idDir + "/machine-id", Attr: unix.MOUNT_ATTR_RDONLY},
	)
	return nil
}

// kernelMounts adds what programs find of the kernel, as containers have it.
func kernelMounts(p *plan.Plan) {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	p.Mounts = append(p.Mounts,
		plan.Mount{Target: "/proc", Type: "proc", Flags: quiet},
		plan.Mount{Target: "/sys", Type: "sysfs", Flags: quiet | unix.MS_RDONLY},
		plan.Mount{Target: "/dev", Type: "tmpfs", Data: "mode=755,size=64k", Flags: unix.MS_NOSUID | unix.MS_NOEXEC},
		plan.Mount{Target: "/dev/pts", Type: "devpts", Data: "newinstance,ptmxmode=0666,mode=0620", Flags: unix.MS_NOSUID | unix.MS_NOEXEC},
		plan.Mount{Target: "/dev/mqueue", Type: "mqueue", Flags: quiet, Optional: true},
		plan.Mount{Target: "/dev/shm", Scratch: &plan.Dir{Mode: 0o1777, UID: -1, GID: -1}, Attr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC},
		plan.Mount{Target: "/tmp", Scratch: &plan.Dir{Mode: 0o1777, UID: -1, GID: -1}, Attr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV},
	)
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		p.Mounts = append(p.Mounts, plan.Mount{Target: "/dev/" + name, Source: "/dev/" + name})
	}
	for _, l := range [][2]string{
		{"/dev/ptmx", "pts/ptmx"}, {"/dev/fd", "/proc/self/fd"}, {"/dev/stdin", "/proc/self/fd/0"},
		{"/dev/stdout", "/proc/self/fd/1"}, {"/dev/stderr", "/proc/self/fd/2"},
	} {
		p.Late = append(p.Late, plan.Link{Path: l[0], Target: l[1]})
	}
	p.Masked = append(p.Masked, "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/sysrq-trigger", "/proc/timer_list", "/sys/firmware", "/sys/class/virtio-ports", "/sys/devices/virtual/powercap")
	p.ReadOnly = append(p.ReadOnly, "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")
	// The user's home, where the image has none.
	if pr := p.Process; pr.User == "" && pr.Home == "" {
		p.Process.Home = "/home/user"
		p.Root.Dirs = append(p.Root.Dirs, plan.Dir{Path: "/home/user", Mode: 0o755, UID: pr.UID, GID: pr.GID})
	}
}
