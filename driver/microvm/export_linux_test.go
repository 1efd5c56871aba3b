package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
)

// StandIn makes a configuration one of the engine firecracker with a program that
// takes Firecracker's place, and finds these paths of the host.
func StandIn(c Config, program string, paths ...string) Config {
	c.Engine, c.Firecracker, c.standIn = Firecracker, program, paths
	return c
}

// Patient waits so long for a machine to show that KVM works.
func Patient(c Config, d time.Duration) Config {
	c.kvmPatience = d
	return c
}

// Boots boots a machine as the build of a template does, and one by the same QEMU
// with the same arguments and files that nothing else is done for, and tells how long
// each took until its guest was there.
func Boots(ctx context.Context, c Config, bc BuildConfig) (ours, bare time.Duration, err error) {
	if c, err = c.withDefaults(); err != nil {
		return 0, 0, err
	}
	v, err := findVMM(c)
	if err != nil {
		return 0, 0, err
	}
	dir, err := os.MkdirTemp(c.Templates, buildPrefix)
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	b := &builder{engine: &engine{cfg: c}, BuildConfig: bc, vmm: v, t: &Template{dir: dir}}
	defer b.spawner.Close()
	b.Progress = func(string) {}
	k, err := os.Open(bc.Kernel)
	if err != nil {
		return 0, 0, err
	}
	defer k.Close()
	if b.kernel, err = qemu.MemoryFile("kernel", k); err != nil {
		return 0, 0, err
	}
	defer b.kernel.Close()
	if err := errors.Join(b.makeDisk(), b.makeInitrd()); err != nil {
		return 0, 0, err
	}
	defer b.disk.Close()
	defer b.initrd.Close()
	shape := qemu.Shape{Accel: qemu.TCG, MemoryMiB: bc.MemoryMiB, CPUs: 1}
	begin := time.Now()
	m, ram, err := b.boot(ctx, shape)
	if err != nil {
		return 0, 0, err
	}
	ours = time.Since(begin)
	ram.Close()
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.vm.pid()))
	if err = errors.Join(err, m.Remove(ctx)); err != nil {
		return 0, 0, err
	}
	bare, err = b.bare(ctx, v.caps().path, strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00")[1:])
	return ours, bare, err
}

// bare starts QEMU with arguments of qemu.Start's, and files in their order.
func (b *builder) bare(ctx context.Context, program string, args []string) (time.Duration, error) {
	ram, err := qemu.MemoryFile("ram", nil)
	if err != nil {
		return 0, err
	}
	defer ram.Close()
	if err := ram.Truncate(int64(b.MemoryMiB) << 20); err != nil {
		return 0, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	// QEMU wants one that was opened as it would open it.
	console, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer console.Close()
	var said strings.Builder
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	c := exec.CommandContext(ctx, program, args...)
	socket := filepath.Join(b.t.dir, "g")
	for _, name := range []string{socket, filepath.Join(b.t.dir, "q")} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
		if err != nil {
			return 0, err
		}
		defer l.Close()
		f, err := l.File()
		if err != nil {
			return 0, err
		}
		defer f.Close()
		c.ExtraFiles = append(c.ExtraFiles, f)
	}
	c.ExtraFiles = append(c.ExtraFiles, ram, b.disk, null, console, b.kernel, b.initrd)
	c.Stderr = &said
	begin := time.Now()
	if err := c.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Wait() // it was killed, or says why
		cancel()
	}()
	defer func() { cancel(); <-ended }()
	rw, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	conn, err := guestconn.Open(ctx, rw, nil)
	if err != nil {
		cancel()
		<-ended
		return 0, fmt.Errorf("%w: %s", err, said.String())
	}
	took := time.Since(begin)
	return took, conn.Close()
}
