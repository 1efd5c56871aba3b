package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	var c config
	flag.StringVar(&c.pkg, "kernel", "", "Debian package with the kernel")
	flag.StringVar(&c.log, "log", "build/cgroup2.log", "file for all that the tests say")
	flag.StringVar(&c.only, "only", "", "run only this job")
	flag.StringVar(&c.run, "run", "", "tests to run, instead of the job's own choice")
	flag.DurationVar(&c.deadline, "deadline", 10*time.Minute, "bounds the machine's life")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.test(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cgroup2:", err)
		os.Exit(1)
	}
}

type config struct {
	pkg, log, only, run string
	deadline            time.Duration
}

func (c *config) test(ctx context.Context) error {
	if c.pkg == "" {
		return errors.New("no kernel: scripts/kernel-package.sh prints one")
	}
	dir, err := os.MkdirTemp("", "axo-cgroup2-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := machine{dir: dir}
	start := time.Now()
	if err := m.takeKernel(ctx, c.pkg); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	list, err := c.jobs()
	if err != nil {
		return err
	}
	if err := m.makeDisk(ctx, list); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	fmt.Printf("cgroup2: kernel %s and disk made in %.0f s\n", m.kernel.Release, time.Since(start).Seconds())
	if err := os.MkdirAll(filepath.Dir(c.log), 0o755); err != nil {
		return err
	}
	start = time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.deadline)
	defer cancel()
	port := filepath.Join(dir, "port")
	runErr := m.run(ctx, port)
	b, err := os.ReadFile(port)
	if err != nil {
		return errors.Join(runErr, err)
	}
	if err := os.WriteFile(c.log, b, 0o644); err != nil {
		return err
	}
	fmt.Printf("cgroup2: the machine ran for %.0f s; all it said: %s\n", time.Since(start).Seconds(), c.log)
	if err := report(os.Stdout, b, list); err != nil {
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
