package microvm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// Deadlines of a build.
const (
	bootPatience = 2 * time.Minute  // emulated, on a busy host
	kvmPatience  = 15 * time.Second // to see whether KVM works at all
	warmPatience = 2 * time.Minute
)

// Build boots a machine, warms it, and stops it as a template. One of the same
// name is replaced when the new one is complete.
func Build(ctx context.Context, c Config, bc BuildConfig) (*Template, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if bc, err = bc.withDefaults(); err != nil {
		return nil, err
	}
	q, err := findVMM(c)
	if err != nil {
		return nil, err
	}
	if bc.Accel != "" && !slices.Contains(q.caps().accels, bc.Accel) {
		return nil, fmt.Errorf("engine %s has no accelerator %s: %w", c.engine(), bc.Accel, isolation.ErrInvalidArgument)
	}
	if err := os.MkdirAll(c.Templates, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockBuilds(ctx, c.Templates)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir, err := os.MkdirTemp(c.Templates, buildPrefix)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &builder{engine: &engine{cfg: c}, BuildConfig: bc, vmm: q}
	defer b.spawner.Close()
	b.t = &Template{
		Name: bc.Name, Source: bc.Source, Built: time.Now().UTC().Truncate(time.Second), Recipe: bc.Recipe, Engine: c.engine(),
		Image: bc.Image, Config: bc.Config, UID: bc.UID, GID: bc.GID, dir: dir,
	}
	if b.t.VMM, err = q.version(ctx); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bc.Guest)
	if !bc.Image {
		b.t.UID, b.t.GID = userID, userID
	}
	b.t.Key = Key{
		Layout: layout, Binary: q.caps().id, CPU: hostCPU(), Kernel: bc.KernelID, Guest: "sha256:" + hex.EncodeToString(sum[:]), Source: bc.SourceKey,
		MemoryMiB: bc.MemoryMiB, CPUs: bc.CPUs, Session: bc.Recipe.Session,
	}
	if err := b.build(ctx); err != nil {
		return nil, fmt.Errorf("build template %s: %w", bc.Name, err)
	}
	return b.t, b.publish()
}

// lockBuilds lets one build at a time run, and removes what builds that were
// killed left.
func lockBuilds(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, os.NewSyscallError("flock", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another build: %w", context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
	removeUnfinished(dir)
	return func() { f.Close() }, nil
}

// removeUnfinished removes what builds that were killed left. The caller has the
// lock.
func removeUnfinished(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, buildPrefix+"*"))
	for _, d := range old {
		_ = os.RemoveAll(d) // the next build tries again
	}
}

// sweepBuilds removes it as well, unless somebody builds.
func sweepBuilds(dir string) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		return // nobody has built here
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		removeUnfinished(dir)
	}
}

type builder struct {
	*engine
	BuildConfig
	vmm vmm
	t   *Template

	kernel, initrd, disk *os.File
}

func (b *builder) build(ctx context.Context) (err error) {
	defer func() {
		for _, f := range []*os.File{b.kernel, b.initrd, b.disk} {
			if f != nil {
				f.Close()
			}
		}
	}()
	b.Progress("root disk from " + b.Source)
	if err := b.makeDisk(); err != nil {
		return fmt.Errorf("root disk: %w", err)
	}
	failpoint.Hit(failpoint.VMDisk)
	if err := b.makeInitrd(); err != nil {
		return fmt.Errorf("initial RAM file system: %w", err)
	}
	k, err := os.Open(b.Kernel)
	if err != nil {
		return err
	}
	defer k.Close()
	if b.kernel, err = qemu.MemoryFile("kernel", k); err != nil {
		return err
	}
	shape := qemu.Shape{Accel: b.Accel, MemoryMiB: b.MemoryMiB, CPUs: b.CPUs}
	switch accels := b.vmm.caps().accels; {
	case shape.Accel != "":
	case len(accels) == 1:
		shape.Accel = accels[0]
	default:
		shape.Accel = qemu.KVM
		why := b.usable(ctx, shape)
		if why != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b.Progress(fmt.Sprintf("KVM does not work here (%.200v): the machine will be emulated", why))
			shape.Accel = qemu.TCG
		}
	}
	b.t.Shape = shape
	return b.snapshot(ctx)
}

func (b *builder) makeDisk() error {
	if b.Reuse != "" {
		// The same file, which nobody writes to: another size of a template takes
		// no other disk.
		err := os.Link(b.Reuse, b.t.path(fileDisk))
		if err == nil {
			return b.openDisk()
		}
		if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EMLINK) {
			return err
		}
	}
	f, err := os.OpenFile(b.t.path(fileDisk), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = b.WriteDisk(f, b.t.dir)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return b.openDisk()
}

func (b *builder) openDisk() (err error) {
	if b.vmm.caps().reopens { // as nobody; nobody else gets into the directory
		if err := os.Chmod(b.t.path(fileDisk), 0o644); err != nil {
			return err
		}
	}
	if b.disk, err = os.Open(b.t.path(fileDisk)); err != nil { // read-only, as QEMU wants it
		return err
	}
	h := sha256.New()
	n, err := io.Copy(h, b.disk)
	if err != nil {
		return err
	}
	b.t.Disk = file{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: n}
	return nil
}

func (b *builder) makeInitrd() error {
	var buf bytes.Buffer
	p, err := b.plan()
	if err != nil {
		return err
	}
	err = b.WriteInitrd(&buf, b.vmm.caps().modules, []string{"dev", "proc", "sys", "run"}, []InitFile{
		{"init", 0o755, b.Guest}, {plan.MachineFile[1:], 0o644, p.Append(nil)},
	})
	if err != nil {
		return err
	}
	b.initrd, err = qemu.MemoryFile("initrd", &buf)
	return err
}

// commandLine is the kernel's (Documentation/admin-guide/kernel-parameters.txt).
func commandLine(s qemu.Shape, options string) string {
	line := "console=ttyS0 quiet panic=-1 cryptomgr.notests ipv6.disable=1 audit=0 apparmor=0 rcupdate.rcu_expedited=1 " + options
	if s.Accel == qemu.TCG {
		// The less there is to translate the sooner is a copy there: the guest's runtime
		// (an option that the kernel does not know is a variable of its first process)
		// sends no signals to itself, and nobody counts how long programs wait for what.
		line += " tsc=reliable no_timer_check psi=0 GODEBUG=asyncpreemptoff=1"
		if khz := tscKHz(); khz > 0 {
			line += fmt.Sprintf(" tsc_early_khz=%d", khz)
		}
	}
	return line
}

// boot boots the machine and connects to its guest.
func (b *builder) boot(ctx context.Context, s qemu.Shape) (_ *machine, ram *os.File, err error) {
	m := &machine{eng: b.engine}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			if ram != nil {
				ram.Close()
			}
			err = errors.Join(err, m.Remove(undo))
		}
	}()
	if err := m.takeUser(); err != nil {
		return nil, nil, err
	}
	if m.dir, err = b.runDir(); err != nil {
		return nil, nil, err
	}
	if ram, err = b.memory(s); err != nil {
		return nil, nil, err
	}
	m.vm, err = b.vmm.boot(ctx, &b.spawner, &bootConfig{
		machineConfig: machineConfig{shape: s, dir: m.dir, ram: ram, disk: b.disk, uid: m.uid(), started: m.started}, kernel: b.kernel, initrd: b.initrd, line: commandLine(s, b.vmm.caps().options),
	})
	if err != nil {
		return nil, ram, err
	}
	stop := context.AfterFunc(ctx, m.vm.Kill)
	defer stop()
	rw, err := m.vm.DialGuest(ctx)
	if err != nil {
		return nil, ram, err
	}
	if m.Conn, err = guestconn.Open(ctx, rw, nil); err != nil {
		return nil, ram, fmt.Errorf("%w%s", err, m.vm.LastWords())
	}
	failpoint.Hit(failpoint.VMBooted)
	return m, ram, nil
}

// memory makes the file that gets the machine's memory. QEMU has it in a file of
// memory, Firecracker writes all of it, zeroes too.
func (b *builder) memory(s qemu.Shape) (*os.File, error) {
	if !b.vmm.caps().reopens {
		f, err := qemu.MemoryFile("ram", nil)
		if err != nil {
			return nil, err
		}
		if err := f.Truncate(int64(s.MemoryMiB) << 20); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	f, err := os.CreateTemp(b.t.dir, "memory-")
	if err != nil {
		return nil, err
	}
	// It has no name: the user nobody opens it again by the descriptor.
	if err := errors.Join(os.Remove(f.Name()), f.Chmod(0o666)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// usable reports why machines with an accelerator do not work: nil if one boots.
func (b *builder) usable(ctx context.Context, s qemu.Shape) error {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return err
	} else {
		f.Close()
	}
	b.Progress("trying KVM")
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(b.cfg.kvmPatience, kvmPatience))
	defer cancel()
	m, ram, err := b.boot(ctx, s)
	if err != nil {
		return err
	}
	ram.Close()
	return m.Remove(context.WithoutCancel(ctx))
}

// settle is how long a guest has to notice that its channel was closed.
const settle = 100 * time.Millisecond

// snapshot boots, warms and stops the machine, and writes its files.
func (b *builder) snapshot(ctx context.Context) (err error) {
	b.Progress("booting Linux " + b.KernelID)
	patience := bootPatience
	if len(b.vmm.caps().accels) == 1 { // nobody has tried before
		patience = cmp.Or(b.cfg.kvmPatience, 2*kvmPatience)
	}
	bctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, ram, err := b.boot(bctx, b.t.Shape)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	defer ram.Close()
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, m.Remove(undo))
	}()
	if !m.Conn.Hello().NeedsSync {
		return fmt.Errorf("the guest does not ask for entropy: %w", wire.ErrProtocol)
	}
	wctx, cancel := context.WithTimeout(ctx, warmPatience)
	defer cancel()
	first := unlike(isolation.Spec{})
	first.Token = nil // a clone has none before its own
	if err := m.Conn.Sync(wctx, first); err != nil {
		return err
	}
	b.Progress("warming")
	for _, args := range b.Warm {
		if code, err := run(wctx, m.Conn, args...); err != nil {
			return err
		} else if code != 0 {
			return fmt.Errorf("%q exited with %d: %w", args, code, isolation.ErrFailedPrecondition)
		}
	}
	if err := m.Conn.Sync(wctx, &wire.SyncMessage{Snapshot: true}); err != nil {
		return err
	}
	m.Conn.Close()
	time.Sleep(settle)
	b.Progress("taking the snapshot")
	state, err := os.OpenFile(b.t.path(fileState), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := m.vm.Snapshot(wctx, state); err != nil {
		return err
	}
	m.vm.Kill()
	<-m.vm.Ended()
	failpoint.Hit(failpoint.VMStopped)
	return b.keep(ram, state)
}

// keep writes the machine's memory and describes its files.
func (b *builder) keep(ram, state *os.File) error {
	out, err := os.OpenFile(b.t.path(fileRAM), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	b.t.RAM.Size = int64(b.t.Shape.MemoryMiB) << 20
	h := sha256.New()
	if err := copySparse(out, ram, b.t.RAM.Size, h); err != nil {
		return err
	}
	b.t.RAM.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	st, err := state.Stat()
	if err != nil {
		return err
	}
	b.t.State.Size = st.Size()
	// As it is checked when it is read.
	h.Reset()
	sink, err := qemu.MemoryFile("state", nil)
	if err != nil {
		return err
	}
	defer sink.Close()
	if err := copySparse(sink, state, st.Size(), h); err != nil {
		return err
	}
	b.t.State.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return errors.Join(out.Sync(), state.Sync())
}

// publish gives the template its name.
func (b *builder) publish() error {
	final := filepath.Join(filepath.Dir(b.t.dir), b.t.Name)
	disk, err := os.Open(b.t.path(fileDisk))
	if err != nil {
		return err
	}
	b.t.Disk.Is, err = identify(disk)
	disk.Close()
	if err != nil {
		return err
	}
	b.t.Digest = b.t.sum()
	doc, err := json.MarshalIndent(b.t, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.t.path(fileTemplate), append(doc, '\n'), 0o600); err != nil {
		return err
	}
	failpoint.Hit(failpoint.VMWhole)
	// The one that was there takes this one's place, in one step: at no moment is
	// there none.
	old := b.t.dir
	err = unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(old, final)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: old, New: final, Err: err}
	}
	b.t.dir = final
	failpoint.Hit(failpoint.VMPlaced)
	return os.RemoveAll(old)
}
