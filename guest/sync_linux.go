package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// machine serves the messages that only a virtual machine takes. They are
// answered by a frame of the same type without a body.
func (s *session) machine(f wire.Frame) error {
	var do func() error
	m := s.g.vm
	switch f.Type {
	case wire.Sync:
		var sm wire.SyncMessage
		if err := sm.Parse(f.Body); err != nil {
			return err
		}
		do = func() error { return s.g.sync(&sm) }
	case wire.Mount:
		var mm wire.MountMessage
		if err := mm.Parse(f.Body); err != nil {
			return err
		}
		do = func() error { return s.g.mount(&mm) }
	case wire.Power:
		var pm wire.PowerMessage
		if err := pm.Parse(f.Body); err != nil {
			return err
		}
		do = func() error { return s.g.power(&pm) }
	}
	if m == nil {
		return s.answer(f.Type, f.Stream, nil, &classError{classSupport, fmt.Errorf("%s: this is no virtual machine", f.Type)})
	}
	t, stream := f.Type, f.Stream
	if t == wire.Sync { // nothing else is to be looked at before
		m.mu.Lock()
		defer m.mu.Unlock()
		return s.answer(t, stream, nil, do())
	}
	go func() { // disks may be slow
		m.mu.Lock()
		defer m.mu.Unlock()
		_ = s.answer(t, stream, nil, do())
	}()
	return nil
}

// sync makes the machine unlike any other. What it asks of the kernel always waits for
// nothing, and so the runtime is not told of it (RawSyscall): in an emulated machine,
// where the first run of any code takes milliseconds, it takes a call for one that
// blocks, and hands this thread's place to another.
func (g *guest) sync(m *wire.SyncMessage) error {
	if m.Snapshot {
		return g.awaitSnapshot()
	}
	if err := g.vm.stir(m.Entropy); err != nil {
		return err
	}
	if m.Time != 0 {
		ts := unix.NsecToTimespec(int64(min(m.Time, 1<<62)))
		if _, _, e := unix.RawSyscall(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
			return os.NewSyscallError("clock_settime", e)
		}
	}
	// What is as it was is left alone: in an emulated machine the first run of any
	// code takes milliseconds.
	if m.Hostname != "" && m.Hostname != g.vm.name {
		if err := g.rename(m.Hostname); err != nil {
			return err
		}
		g.vm.name = m.Hostname
	}
	for name, id := range map[string]string{"machine-id": m.MachineID, "boot_id": m.BootID} {
		if id == "" {
			continue
		}
		if strings.Trim(id, "0123456789abcdef-") != "" || len(id) > 36 {
			return &classError{classInvalid, fmt.Errorf("%s %q", name, id)}
		}
		// The same file: programs see it by its bind mount.
		if err := g.vm.ids[name].set(id); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(m.Token) > 0 {
		mark := wire.Mark(m.Token)
		g.vm.mark.Store(&mark)
	}
	if l := (limits{m.Memory, m.Pids, m.MilliCPU, m.Disk}); l != g.vm.limits {
		if err := g.limit(m); err != nil {
			return err
		}
		g.vm.limits = l
	}
	g.needsSync.Store(false)
	if g.vm.frozen {
		if err := g.vm.groups.all.Freeze(false); err != nil {
			return err
		}
		g.vm.frozen = false
	}
	return nil
}

// idFile has one line, which says who the machine is. It stays open, and is written
// in place: in an emulated machine what it takes to open, empty and close a file takes
// longer than all the rest of a SYNC, in its first run.
type idFile struct {
	f    *os.File
	size int // bytes
}

func (i *idFile) set(id string) error {
	line := []byte(id + "\n")
	_, _, e := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(fdOf(i.f)), uintptr(unsafe.Pointer(unsafe.SliceData(line))), uintptr(len(line)), 0, 0, 0)
	if e != 0 {
		return os.NewSyscallError("pwrite", e)
	}
	if len(line) < i.size {
		if err := i.f.Truncate(int64(len(line))); err != nil {
			return err
		}
	}
	i.size = len(line)
	return nil
}

// limits are those of a SYNC; none at first.
type limits struct{ memory, pids, milliCPU, disk uint64 }

// limit bounds all programs together.
func (g *guest) limit(m *wire.SyncMessage) error {
	if m.Disk > 0 {
		if err := g.vm.resize(m.Disk); err != nil {
			return fmt.Errorf("disk limit: %w", err)
		}
	}
	l := cgroup.Limits{MemoryBytes: int64(min(m.Memory, 1<<62)), Pids: int64(min(m.Pids, 1<<31)), CPUs: float64(m.MilliCPU) / 1000}
	if all := g.vm.groups.all; all != nil {
		return all.Limit(l)
	}
	if l.MemoryBytes > 0 || l.Pids > 0 || l.CPUs > 0 {
		return &classError{classSupport, errors.New("limits: the machine's kernel has no control groups")}
	}
	return nil
}

// resize bounds the memory that holds what programs write (fspick(2)).
func (m *machine) resize(size uint64) error {
	if m.Upper.Device != "" {
		return &classError{classSupport, errors.New("what programs write is on a disk")}
	}
	fs, err := unix.Fspick(fdOf(m.stage), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fspick", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", strconv.FormatUint(size, 10)); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	return os.NewSyscallError("fsconfig", unix.FsconfigReconfigure(fs))
}

// awaitSnapshot stops programs and the start of others until the next SYNC.
func (g *guest) awaitSnapshot() error {
	g.needsSync.Store(true)
	if all := g.vm.groups.all; all != nil && all.Populated() {
		err := all.Freeze(true)
		g.vm.frozen = err == nil
		if errors.Is(err, errors.ErrUnsupported) {
			// Of version 1: then only a machine without programs is restored
			// without one of them running before SYNC.
			if n := g.running(); n > 0 {
				return &classError{classSupport, fmt.Errorf("a snapshot with %d programs: needs control groups of version 2", n)}
			}
			err = nil
		} else if err == nil {
			err = awaitFrozen(all)
		}
		if err != nil {
			return err
		}
	}
	runtime.GC() // what is garbage now is in no clone
	return nil
}

// frozenWait bounds the wait until all programs stand still.
const frozenWait = 2 * time.Second

func awaitFrozen(g *cgroup.Group) error {
	for end := time.Now().Add(frozenWait); !g.Frozen(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return &classError{classFailed, fmt.Errorf("programs do not stand still after %v", frozenWait)}
		}
	}
	return nil
}

// running counts the programs that have not ended.
func (g *guest) running() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.processes) - len(g.ended)
}

// rename gives the machine a name, and its root the files that say it.
func (g *guest) rename(name string) error {
	if len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != "" {
		return &classError{classInvalid, fmt.Errorf("hostname %.80q", name)}
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	return g.inside(func() error {
		t, err := openTree("/")
		if err != nil {
			return err
		}
		defer t.close()
		for _, f := range []plan.File{
			{Path: "/etc/hostname", Mode: 0o644, Data: name + "\n"},
			{Path: "/etc/hosts", Mode: 0o644, Data: "127.0.0.1\tlocalhost " + name + "\n::1\tlocalhost\n"},
		} {
			if err := t.file(f); err != nil && !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("%s: %w", f.Path, err)
			}
		}
		return nil
	})
}

// mount puts a disk of the machine into the programs' root.
func (g *guest) mount(m *wire.MountMessage) error {
	if !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) == "/" {
		return &classError{classInvalid, fmt.Errorf("target %q of a mount", m.Target)}
	}
	target := filepath.Clean(m.Target)
	if m.Remove {
		if !slices.Contains(g.vm.mounts, target) {
			return &classError{classNotFound, fmt.Errorf("nothing was mounted on %s", target)}
		}
		err := g.inside(func() error {
			unix.Sync()
			return unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		})
		if err == nil {
			g.vm.mounts = slices.DeleteFunc(g.vm.mounts, func(s string) bool { return s == target })
		}
		return mountError(target, err)
	}
	if m.Device == "" || strings.ContainsAny(m.Device, "/,=") || m.Type == "" || m.Source != "" && !filepath.IsAbs(m.Source) {
		return &classError{classInvalid, fmt.Errorf("device %q with type %q", m.Device, m.Type)}
	}
	p := plan.Mount{Type: m.Type, Data: strings.TrimSuffix("source=/dev/"+m.Device+","+m.Data, ","), Flags: unix.MS_NOSUID | unix.MS_NODEV}
	if m.ReadOnly {
		p.Flags |= unix.MS_RDONLY
		p.Data += ",ro"
	}
	var fd int
	err := await(func() (err error) {
		fd, err = newFS(p)
		return err
	})
	if err != nil {
		return mountError(target, err)
	}
	defer unix.Close(fd)
	if m.Own && !m.ReadOnly {
		if err := unix.Fchownat(fd, "", g.plan.Process.UID, g.plan.Process.GID, unix.AT_EMPTY_PATH); err != nil {
			return mountError(target, err)
		}
	}
	err = g.inside(func() error {
		t, err := openTree("/")
		if err != nil {
			return err
		}
		defer t.close()
		from := fd
		if m.Source != "" {
			if from, err = part(fd, m.Source); err != nil {
				return err
			}
			defer unix.Close(from)
		}
		to, err := t.place(target, from)
		if err != nil {
			return err
		}
		defer unix.Close(to)
		return move(from, to)
	})
	if err == nil {
		g.vm.mounts = append(g.vm.mounts, target)
	}
	return mountError(target, err)
}

// partDir is where a file system is mounted for the moment in which a part of it
// is taken: nothing detached can be (open_tree(2)).
const partDir = "/dev/.axo"

// part is a mount of what has a name in a detached file system, which is no more.
func part(fs int, name string) (_ int, err error) {
	if err := unix.Mkdir(partDir, 0o700); err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "mkdir", Path: partDir, Err: err}
	}
	at, err := openTree(partDir)
	if err != nil {
		return -1, err
	}
	defer at.close()
	if err := move(fs, at.fd); err != nil {
		return -1, err
	}
	defer func() {
		err = errors.Join(err, unix.Unmount(partDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW), unix.Rmdir(partDir))
	}()
	whole, err := openTree(partDir)
	if err != nil {
		return -1, err
	}
	defer whole.close()
	from, err := whole.open(name, unix.O_PATH)
	if err != nil {
		return -1, err
	}
	defer unix.Close(from)
	fd, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	return fd, os.NewSyscallError("open_tree", err)
}

func mountError(target string, err error) error {
	if err == nil {
		return nil
	}
	return &classError{classFailed, fmt.Errorf("mount %s: %w", target, err)}
}

// powerGrace is how long the answer has to reach the host.
const powerGrace = 20 * time.Millisecond

// power ends the machine, after its programs.
func (g *guest) power(m *wire.PowerMessage) error {
	g.needsSync.Store(true)
	if all := g.vm.groups.all; all != nil {
		_ = all.Freeze(true) // nothing writes meanwhile
	}
	unix.Sync()
	_ = g.inside(func() error {
		for _, target := range slices.Backward(g.vm.mounts) {
			if unix.Unmount(target, unix.MNT_DETACH) != nil {
				_ = unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
			}
		}
		return nil
	})
	unix.Sync()
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if m.Reboot {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	time.AfterFunc(powerGrace, func() { _ = unix.Reboot(how) })
	return nil
}
