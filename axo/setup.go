package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/image/kernel"
	"github.com/axocoatl/isolation/internal/form"
)

func newSetup() *cobra.Command {
	c := &cobra.Command{
		Use:   "setup",
		Short: "Prepare what a tier needs before its first use",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return errors.New("of which tier? see axo setup --help") },
	}
	c.AddCommand(newSetupMicroVM(), newSetupBase())
	return c
}

func newSetupMicroVM() *cobra.Command {
	var f templateFlags
	var again bool
	c := &cobra.Command{
		Use:   "microvm",
		Short: "Import a kernel and build the default template, where they are missing",
		Long: `Import a kernel and build the default template of virtual machines, where they are
missing or do not fit this host any more. The kernel is this host's; where that
cannot be used, Debian's kernel for clouds is downloaded with apt-get. It takes a
VMM, which you install: Firecracker, a program in PATH, where KVM works; else QEMU:
on Debian, apt install qemu-system-x86.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := driverConfig(c)
			if err != nil {
				return err
			}
			step := f.progress(c.ErrOrStderr())
			asked := f.engine != ""
			f.engine = f.engineFor(config)
			if err := microvm.Installed(config.MicroVM(f.engine)); err != nil {
				return failed(c, err, f.asJSON)
			}
			if err := ensureKernel(c.Context(), filepath.Join(config.StateDir, all.KernelsDir), step); err != nil {
				return failed(c, err, f.asJSON)
			}
			there := func() bool {
				if again {
					return false
				}
				err := all.CheckTemplate(c.Context(), config, f.engine, microvm.DefaultTemplate)
				switch {
				case err == nil:
					step("the default template is there")
				case errors.Is(err, isolation.ErrFailedPrecondition):
					step(err.Error())
				}
				return err == nil
			}
			if there() {
				return nil
			}
			err = f.make(c, config, microvm.DefaultTemplate)
			if err == nil || asked || f.engine == microvm.QEMU || c.Context().Err() != nil || microvm.Installed(config.MicroVM(microvm.QEMU)) != nil {
				return f.print(c, err, config, microvm.DefaultTemplate)
			}
			step(fmt.Sprintf("Firecracker does not work here (%.300v); QEMU instead", err))
			if f.engine = microvm.QEMU; there() {
				return nil
			}
			return f.build(c, microvm.DefaultTemplate)
		},
	}
	f.register(c.Flags())
	c.Flags().BoolVar(&again, "again", false, "build the template anew")
	return c
}

// ensureKernel imports a kernel unless there is one.
func ensureKernel(ctx context.Context, dir string, step func(string)) error {
	s, err := kernel.Open(dir, kernel.Limits{})
	if err != nil {
		return err
	}
	if _, err := s.Get(""); !errors.Is(err, isolation.ErrNotFound) {
		return err
	}
	step("importing this host's kernel")
	_, hostErr := s.ImportHost(ctx, kernel.Options{})
	if hostErr == nil || ctx.Err() != nil {
		return hostErr
	}
	step(fmt.Sprintf("that is of no use (%.200v); fetching Debian's kernel for clouds", hostErr))
	temp, err := os.MkdirTemp("", "axo-kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	pkg, err := fetchKernel(ctx, temp)
	if err != nil {
		return fmt.Errorf("no kernel: the host's: %w; Debian's: %w; import one with axo kernel import", hostErr, err)
	}
	_, err = s.Import(ctx, []string{pkg}, kernel.Options{})
	return err
}

var cloudKernel = form.Of(`(?m)^ *Depends: (linux-image-[0-9][a-z0-9.+-]*)$`)

// fetchKernel downloads the package of Debian's kernel for clouds.
func fetchKernel(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "linux-image-cloud-amd64").Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache: %w", err)
	}
	m := cloudKernel().FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("apt-cache knows no linux-image-cloud-amd64; run apt-get update: %w", isolation.ErrNotFound)
	}
	c := exec.CommandContext(ctx, "apt-get", "download", "-q", string(m[1]))
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download: %w: %.500s", err, out)
	}
	list, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(list) != 1 {
		return "", fmt.Errorf("apt-get download left %d packages (%w)", len(list), err)
	}
	return list[0], nil
}
