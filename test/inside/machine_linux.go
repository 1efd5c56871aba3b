package inside

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/axocoatl/isolation/image/kernel"
)

//go:embed init.sh
var initScript []byte

// machine is one that runs the tests; its files are in dir.
type machine struct {
	*Config
	dir    string
	kernel *kernel.Kernel
}

func (m *machine) disk() string    { return filepath.Join(m.dir, "disk") }
func (m *machine) scratch() string { return filepath.Join(m.dir, "scratch") }
func (m *machine) initrd() string  { return filepath.Join(m.dir, "initrd") }
func (m *machine) console() string { return filepath.Join(m.dir, "console") }

func (m *machine) takeKernel(ctx context.Context) error {
	s, err := kernel.Open(filepath.Join(m.dir, "kernels"), kernel.Limits{})
	if err != nil {
		return err
	}
	if m.kernel, err = s.Import(ctx, []string{m.Package}, kernel.Options{}); err != nil {
		return err
	}
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("package busybox-static: %w", err)
	}
	f, err := os.Create(m.initrd())
	if err != nil {
		return err
	}
	err = m.kernel.WriteInitrd(f, append([]string{"virtio_mmio", "virtio_console", "virtio_blk", "erofs", "overlay"}, m.Modules...),
		[]string{"bin", "dev", "proc", "root"},
		kernel.InitrdFile{Name: "init", Mode: 0o755, Data: bytes.NewReader(initScript), Size: int64(len(initScript))},
		kernel.InitrdFile{Name: "bin/busybox", Mode: 0o755, Data: bytes.NewReader(box), Size: int64(len(box))})
	return errors.Join(err, f.Close())
}

// run runs the machine until it turns itself off. What it writes to its port
// goes to a file.
func (m *machine) run(ctx context.Context, port string) error {
	khz, err := tscKHz()
	if err != nil {
		return err
	}
	cpu, memory := m.CPU, m.MemoryMiB
	if cpu == "" {
		cpu = "max"
	}
	if memory == 0 {
		memory = 3072
	}
	threads := "multi"
	if m.OneThread {
		threads = "single"
	}
	c := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "microvm", "-accel", "tcg,thread="+threads+",tb-size=256", "-cpu", cpu, "-m", strconv.Itoa(memory), "-smp", "2",
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-kernel", m.kernel.VMLinux(), "-initrd", m.initrd(),
		// Without the rate of its clock an emulated machine measures it, which
		// on a busy host may never end.
		"-append", fmt.Sprintf("console=ttyS0 panic=-1 reboot=t tsc=reliable no_timer_check tsc_early_khz=%d cryptomgr.notests audit=0", khz),
		"-chardev", "file,id=console,path="+m.console(), "-serial", "chardev:console",
		"-chardev", "file,id=port,path="+port, "-device", "virtio-serial-device", "-device", "virtserialport,chardev=port,nr=1",
		"-drive", "if=none,id=disk,format=raw,readonly=on,file="+m.disk(), "-device", "virtio-blk-device,drive=disk",
		"-drive", "if=none,id=scratch,format=raw,file="+m.scratch(), "-device", "virtio-blk-device,drive=scratch")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs bytes.Buffer
	c.Stderr = &errs
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("the machine did not end in time: %w", context.Cause(ctx))
		}
		return fmt.Errorf("qemu: %w\n%s", err, errs.Bytes())
	}
	return nil
}

// lastWords is the end of the console.
func (m *machine) lastWords() error {
	b, err := os.ReadFile(m.console())
	if err != nil {
		return err
	}
	return fmt.Errorf("the console ended so:\n%s", b[max(0, len(b)-4000):])
}

// tscKHz is the rate of the host's time stamp counter, which is the guest's.
func tscKHz() (int, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "cpu MHz" {
			mhz, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return int(mhz * 1000), err
		}
	}
	return 0, errors.New("/proc/cpuinfo does not say how fast the processor's clock is")
}
