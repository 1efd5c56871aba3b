package inside

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/axocoatl/isolation/image/kernel"
)

// Job is a test program.
type Job struct {
	Name string // of the program and its directory in the machine
	Dir  string // of its package
	Run  string // flags that choose its tests; "": all
}

// Config is a machine and what it runs.
type Config struct {
	Name     string // for what is printed
	Package  string // of Debian, with the kernel
	Log      string // file for all that the tests say
	Deadline time.Duration
	Jobs     []Job
	// Programs are packages of commands that tests would build.
	Programs []string
	// Packages are those of Debian whose files the tests need beside a shell, the
	// usual commands and Python, with what they depend on.
	Packages []string
	// Add puts more onto the root disk. temp is for what it needs meanwhile, k
	// the kernel. nil: nothing.
	Add func(ctx context.Context, w *Disk, k *kernel.Kernel, temp string) error
	// Modules are loaded beside those of the machine's devices.
	Modules []string
	// Env is set for the tests: NAME=value.
	Env       []string
	CPU       string // of QEMU; "": max
	MemoryMiB int    // 0: 3072
	// OneThread has its processors take turns on one thread of the host. With one
	// each, a kernel that changes its own code while it runs (tracepoints, static
	// keys) waits for ever at times; without, it is faster.
	OneThread bool
}

// Run makes the machine, runs it, and prints how the jobs went. It returns an
// error unless all ended well and tested something.
func Run(ctx context.Context, c *Config) error {
	if c.Package == "" {
		return errors.New("no kernel: scripts/kernel-package.sh prints one")
	}
	dir, err := os.MkdirTemp("", "axo-"+c.Name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := machine{Config: c, dir: dir}
	begin := time.Now()
	if err := m.takeKernel(ctx); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if err := m.makeDisk(ctx); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	fmt.Printf("%s: kernel %s and disk made in %.0f s\n", c.Name, m.kernel.Release, time.Since(begin).Seconds())
	if err := os.MkdirAll(filepath.Dir(c.Log), 0o755); err != nil {
		return err
	}
	begin = time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.Deadline)
	defer cancel()
	port := filepath.Join(dir, "port")
	runErr := m.run(ctx, port)
	b, err := os.ReadFile(port)
	if err != nil {
		return errors.Join(runErr, err)
	}
	if err := os.WriteFile(c.Log, b, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: the machine ran for %.0f s; all it said: %s\n", c.Name, time.Since(begin).Seconds(), c.Log)
	if err := report(os.Stdout, c.Name, b, c.Jobs); err != nil {
		return errors.Join(err, runErr, m.lastWords())
	}
	return runErr
}

// run builds and runs a command of this host.
func run(ctx context.Context, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", c.Args, err, out)
	}
	return nil
}
