package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/microvm/internal/qemu"
	"github.com/axocoatl/isolation/internal/spawn"
)

// machine is a QEMU. It implements vmm.
type machine struct {
	spawner spawn.Spawner
	vm      *qemu.Machine
	ram     *os.File // of a machine that was booted
	saved   saved
	gone    func()
}

// saved is what a snapshot has before QEMU's state.
type saved struct {
	Shape qemu.Shape
	Disk  string // path; and these
	Data  string
	Vsock string
}

// Nothing that a machine does at once takes longer.
const patience = time.Minute

const program = "/usr/bin/qemu-system-x86_64"

func (m *machine) boot(c *config) error {
	if len(c.Drives) != 2 || c.Vsock == nil || c.Machine.MemSizeMiB == nil || c.Boot.InitrdPath == nil || c.Boot.BootArgs == nil {
		return errors.New("the stand-in boots machines of two drives, with a vsock, an initrd and boot_args")
	}
	m.saved = saved{qemu.Shape{Accel: qemu.TCG, MemoryMiB: *c.Machine.MemSizeMiB, CPUs: *c.Machine.VCPUCount}, *c.Drives[0].PathOnHost, *c.Drives[1].PathOnHost, *c.Vsock.UDSPath}
	kernel, err := os.Open(*c.Boot.KernelImagePath)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initrd, err := os.Open(*c.Boot.InitrdPath)
	if err != nil {
		return err
	}
	defer initrd.Close()
	if m.ram, err = qemu.MemoryFile("ram", nil); err != nil {
		return err
	}
	if err := m.ram.Truncate(int64(m.saved.Shape.MemoryMiB) << 20); err != nil {
		return err
	}
	return m.start(&qemu.Config{RAM: m.ram, Boot: &qemu.Boot{Kernel: kernel, Initrd: initrd, Append: *c.Boot.BootArgs}})
}

func (m *machine) start(c *qemu.Config) error {
	disk, err := os.Open(m.saved.Disk)
	if err != nil {
		return err
	}
	defer disk.Close()
	data, err := os.Open(m.saved.Data)
	if err != nil {
		return err
	}
	defer data.Close()
	if c.Dir, err = os.MkdirTemp(".", "qemu-"); err != nil {
		return err
	}
	c.Shape, c.Program, c.Disk, c.Data = m.saved.Shape, program, disk, data
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if m.vm, err = qemu.Start(ctx, &m.spawner, c); err != nil {
		return err
	}
	go func() {
		<-m.vm.Ended()
		m.vm.Wait()
		fmt.Fprint(os.Stdout, m.vm.Panicked(), m.vm.LastWords())
		m.gone()
	}()
	return m.listen(m.saved.Vsock)
}

// The machine that a test has is never both.
func (m *machine) pause() error { return nil } // QEMU stops when the snapshot is taken

func (m *machine) resume() error {
	if m.ram != nil {
		return errors.New("the stand-in does not go on after a snapshot")
	}
	return m.vm.Thaw()
}

func (m *machine) snapshot(state, memory string) error {
	out, err := os.OpenFile(state, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := json.NewEncoder(out).Encode(m.saved); err != nil {
		return err
	}
	devices, err := qemu.MemoryFile("devices", nil)
	if err != nil {
		return err
	}
	defer devices.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.vm.Snapshot(ctx, devices); err != nil {
		return err
	}
	if _, err := io.Copy(out, io.NewSectionReader(devices, 0, 1<<30)); err != nil {
		return err
	}
	mem, err := os.OpenFile(memory, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer mem.Close()
	if err := mem.Truncate(int64(m.saved.Shape.MemoryMiB) << 20); err != nil {
		return err
	}
	return copyData(mem, m.ram)
}

// copyData copies what is not a hole.
func copyData(dst, src *os.File) error {
	for at := int64(0); ; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		} else if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		if at, err = unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE); err != nil {
			return os.NewSyscallError("lseek", err)
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, data), io.NewSectionReader(src, data, at-data)); err != nil {
			return err
		}
	}
}

func (m *machine) load(state, memory string, resume bool) error {
	if !resume {
		return errors.New("the stand-in resumes what it loads")
	}
	f, err := os.Open(state)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &m.saved); err != nil {
		return err
	}
	devices, err := qemu.MemoryFile("devices", r)
	if err != nil {
		return err
	}
	defer devices.Close()
	if _, err := devices.Seek(0, io.SeekStart); err != nil {
		return err
	}
	ram, err := os.Open(memory)
	if err != nil {
		return err
	}
	defer ram.Close()
	return m.start(&qemu.Config{RAM: ram, State: devices})
}

func (m *machine) setDrive(string, string) error {
	return errors.New("the drives of the stand-in stay")
}
