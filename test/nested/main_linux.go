package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/axocoatl/isolation/image/disk"
	"github.com/axocoatl/isolation/image/kernel"
	"github.com/axocoatl/isolation/test/inside"
)

func main() {
	c := inside.Config{
		Name: "nested", Programs: []string{"cmd/axo-guest", "drivertest/testprogram", "internal/testprog/testdata/go/wreck"}, Modules: []string{"kvm_amd"},
		// A processor that the VMMs know; "max" has what AMD's never had together.
		CPU: "EPYC",
	}
	var f job
	flag.StringVar(&c.Package, "kernel", "", "Debian package with the kernel")
	flag.StringVar(&c.Log, "log", "build/nested.log", "file for all that the tests say")
	flag.StringVar(&f.firecracker, "firecracker", "", "path of firecracker; default: test QEMU with KVM")
	flag.StringVar(&f.tests, "run", "", "tests to run, instead of the job's own choice")
	flag.DurationVar(&c.Deadline, "deadline", 10*time.Minute, "bounds the machine's life")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := f.run(ctx, &c); err != nil {
		fmt.Fprintln(os.Stderr, "nested:", err)
		os.Exit(1)
	}
}

type job struct{ firecracker, tests string }

// Where the tests find things in the machine.
const parts = "/axo/parts"

// quick are tests that show that KVM works: it is tried, a machine is booted,
// stopped as a template, restored, and holds to some of what every driver does.
// Emulated twice over, all of them would take a quarter of an hour.
const quick = "-test.run=^(TestGuest|TestDirs|TestLost)$|^TestConformance$/^probe$"

func (f *job) run(ctx context.Context, c *inside.Config) error {
	j := inside.Job{Name: "microvm", Dir: "driver/microvm", Run: quick}
	vmm := "kvm"
	if f.firecracker != "" {
		vmm = "firecracker"
		j.Run = "-test.skip=/hammer|^TestClonesDifferBySync$"
		c.Env = append(c.Env, "AXO_FIRECRACKER_PATH="+parts+"/firecracker")
	} else {
		c.Packages = []string{"qemu-system-x86", "qemu-system-data", "seabios"}
	}
	if f.tests != "" {
		j.Run = "-test.run=" + f.tests
	}
	c.Jobs = []inside.Job{j}
	c.Env = append(c.Env, "TIMEOUT="+c.Deadline.String(), "AXO_TEST_VMM="+vmm, "AXO_TEST_KERNELS="+parts+"/kernels", "AXO_TEST_ROOTDISK="+parts+"/rootdisk")
	c.Add = f.add
	return inside.Run(ctx, c)
}

// add adds what the tests would make, or find on a host.
func (f *job) add(ctx context.Context, w *inside.Disk, k *kernel.Kernel, temp string) error {
	dir := filepath.Join(temp, "parts")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(dir, "kernels"), os.DirFS(filepath.Dir(filepath.Dir(k.VMLinux())))); err != nil {
		return err
	}
	if f.firecracker != "" {
		b, err := os.ReadFile(f.firecracker)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "firecracker"), b, 0o755)
		}
		if err != nil {
			return err
		}
	} else if err := addLibraries(ctx, w, "/usr/bin/qemu-system-x86_64"); err != nil {
		return err
	}
	if err := makeRoot(ctx, filepath.Join(dir, "rootdisk"), temp); err != nil {
		return fmt.Errorf("root of the machines in the machine: %w", err)
	}
	return w.Tree(dir, parts, disk.Same, nil)
}

// makeRoot makes the root disk of the machines that are tested.
func makeRoot(ctx context.Context, name, temp string) error {
	program, err := os.ReadFile(filepath.Join(temp, "bin", "programs", "testprogram"))
	if err != nil {
		return err
	}
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer out.Close()
	w := disk.Create(out, temp, disk.Limits{})
	return errors.Join(inside.System(ctx, w), w.File("/opt/suite/testprogram", 0o755, program), w.Close())
}

// addLibraries adds the libraries of a program (ldd(1)).
func addLibraries(ctx context.Context, w *inside.Disk, program string) error {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return fmt.Errorf("ldd: %w", err)
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		for field := range strings.FieldsSeq(s.Text()) {
			if !filepath.IsAbs(field) {
				continue
			}
			if err := addLinked(w, field); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// addLinked adds a file and, if it is a link, what that leads to.
func addLinked(w *inside.Disk, name string) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(name))
	if err != nil {
		return err
	}
	name = filepath.Join(dir, filepath.Base(name))
	if w.Has(name) {
		return nil
	}
	if err := w.Path(name, disk.Same); err != nil {
		return err
	}
	if info, err := os.Lstat(name); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return err
	}
	to, err := os.Readlink(name)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(dir, to)
	}
	return addLinked(w, to)
}
