package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/image/kernel"
)

func newKernel() *cobra.Command {
	c := &cobra.Command{
		Use:   "kernel",
		Short: "Import, list and remove kernels for virtual machines",
	}
	c.AddCommand(newKernelImport(), newKernelLs(), newKernelRm())
	return c
}

// withKernels runs a command on the kernel store, and reports its error as
// others are.
func withKernels(c *cobra.Command, asJSON bool, f func(*kernel.Store) error) error {
	dir, err := stateDir(c)
	if err != nil {
		return err
	}
	s, err := kernel.Open(filepath.Join(dir, all.KernelsDir), kernel.Limits{})
	if err == nil {
		err = f(s)
	}
	if err != nil {
		return failed(c, err, asJSON)
	}
	return nil
}

func newKernelImport() *cobra.Command {
	var asJSON, host bool
	var o kernel.Options
	c := &cobra.Command{
		Use:   "import [flags] FILE... | --from-host",
		Short: "Take a kernel from packages, from files, or from this host",
		Long: `Take a kernel for virtual machines from packages of Debian or Ubuntu, from a kernel
image (bzImage or vmlinux) and its directory of modules, or from this host's /boot.
The image is unpacked, and the modules that a virtual machine needs are kept with
it. The kernel that was imported last is the one that is used. Its digest is
printed.`,
		Example: `  apt-get download linux-image-6.1.0-56-cloud-amd64 && axo kernel import linux-image-*.deb
  axo kernel import linux-image-unsigned-*.deb linux-modules-*.deb
  axo kernel import /boot/vmlinuz-6.1.0-56-amd64 /lib/modules/6.1.0-56-amd64
  axo kernel import --from-host`,
		Args: func(_ *cobra.Command, args []string) error {
			if host == (len(args) > 0) {
				return errors.New("want files, or --from-host")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return withKernels(c, asJSON, func(s *kernel.Store) error {
				var k *kernel.Kernel
				var err error
				if host {
					k, err = s.ImportHost(c.Context(), o)
				} else {
					k, err = s.Import(c.Context(), args, o)
				}
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), k)
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), k.Digest)
				return err
			})
		},
	}
	c.Flags().BoolVar(&host, "from-host", false, "take the kernel of this host")
	c.Flags().StringArrayVar(&o.Modules, "module", nil, "a further module to keep; may be repeated")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with the kernel")
	return c
}

func newKernelLs() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the kernels that are here, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withKernels(c, asJSON, func(s *kernel.Store) error {
				list, err := s.List()
				if err != nil {
					return err
				}
				if asJSON {
					if list == nil {
						list = []*kernel.Kernel{}
					}
					return printJSON(c.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "RELEASE\tDIGEST\tMODULES\tSIZE\tADDED")
				for _, k := range list {
					size := k.KernelSize
					for _, m := range k.Modules {
						size += m.Size
					}
					fmt.Fprintf(w, "%s\t%.19s\t%d\t%s\t%s\n", k.Release, k.Digest, len(k.Modules), bytesOf(size), k.Added.Local().Format(time.DateTime))
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of kernels")
	return c
}

func newKernelRm() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "rm [flags] RELEASE|DIGEST...",
		Short: "Remove kernels, by release or by at least four digits of a digest",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withKernels(c, asJSON, func(s *kernel.Store) error {
				list := []*kernel.Kernel{}
				var errs []error
				for _, ref := range args {
					k, err := s.Remove(c.Context(), ref)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					list = append(list, k)
					if !asJSON {
						fmt.Fprintln(c.OutOrStdout(), "removed", k.Release, k.Digest)
					}
				}
				if asJSON {
					errs = append(errs, printJSON(c.OutOrStdout(), list))
				}
				return errors.Join(errs...)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of what was removed")
	return c
}
