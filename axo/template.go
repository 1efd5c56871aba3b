package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/microvm"
)

func newTemplate() *cobra.Command {
	c := &cobra.Command{
		Use:   "template",
		Short: "Build, list and remove templates of virtual machines",
	}
	c.AddCommand(newTemplateBuild(), newTemplateLs(), newTemplateRm())
	return c
}

// defaultTemplateMiB is the memory of a template of which nobody has said how much.
const defaultTemplateMiB = 640

// templateFlags are those of template build and setup.
type templateFlags struct {
	microvm.Recipe
	engine        string
	quiet, asJSON bool
}

func (f *templateFlags) register(fs *pflag.FlagSet) {
	fs.IntVar(&f.MemoryMiB, "memory", defaultTemplateMiB, "memory of the machine in MiB; 64 of it are the kernel's and the guest's")
	fs.IntVar(&f.CPUs, "cpus", 1, "processors of the machine")
	fs.StringVar(&f.engine, "engine", "", "firecracker or qemu; default: firecracker where it is installed and KVM can be opened, else qemu")
	fs.StringVar(&f.Accel, "accel", "", "kvm or tcg (emulated); default: what works here")
	fs.StringArrayVar(&f.Packages, "package", nil, "with the host's system: a further package of this host; may be repeated")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON object with the template")
}

// microvmEngines are those that have templates, in order of preference.
var microvmEngines = []string{microvm.Firecracker, microvm.QEMU}

// engineFor is the engine that a template is built for.
func (f *templateFlags) engineFor(c all.Config) string {
	switch {
	case f.engine != "":
		return f.engine
	case f.Accel != "tcg" && microvm.Installed(c.MicroVM(microvm.Firecracker)) == nil:
		return microvm.Firecracker
	}
	return microvm.QEMU
}

// progress shows the steps of a build.
func (f *templateFlags) progress(w io.Writer) func(string) {
	return func(step string) {
		if !f.quiet {
			fmt.Fprintf(w, "%s ...\n", step)
		}
	}
}

func newTemplateBuild() *cobra.Command {
	var f templateFlags
	var file fileFlags
	c := &cobra.Command{
		Use:   "build [flags] [NAME]",
		Short: "Boot a machine once, and keep it as a template; or build an image of a Dockerfile",
		Long: `Boot a machine once, warm it, and keep it as a template, of which the sandboxes of
tier microvm are copies. Its root disk is made of this host's system, of an image,
or of a directory. Sandboxes without a root of their own use the template
"default", which is also what no NAME means; axo run --template names another. For
an image, and for a sandbox that needs a larger machine, a template is built when
it is first wanted. A template is built anew when what it was made of changes: QEMU
or Firecracker, the processor, the kernel, axo-guest, the image. Each engine has
templates of its own.

With --file an image is built, of which both containers and virtual machines can be
made. Each step runs in a container of its own, with what build.allow_hosts gives it of
the network; what a step has changed is kept, and is not done again by the next build.`,
		Example: `  axo template build
  axo template build --memory 2048 --cpus 2 --package git
  axo template build --image python:3.12 python
  axo template build --rootfs ./rootfs small
  axo template build --file axo.Dockerfile mine && axo run --image mine`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if file.file != "" {
				if len(args) == 0 {
					return errors.New("what is the image to be called? axo template build --file FILE NAME")
				}
				return file.build(c, args[0], f.quiet, f.asJSON)
			}
			name := microvm.DefaultTemplate
			if len(args) > 0 {
				name = args[0]
			}
			switch {
			case f.Image != "" && f.Dir != "":
				return errors.New("--image and --rootfs exclude each other")
			case (f.Image != "" || f.Dir != "") && len(f.Packages) > 0:
				return errors.New("--package goes with the host's system")
			case f.Dir != "":
				var err error
				if f.Dir, err = filepath.Abs(f.Dir); err != nil {
					return err
				}
			}
			return f.build(c, name)
		},
	}
	f.register(c.Flags())
	c.Flags().StringVar(&f.Kernel, "kernel", "", "release or digest of the kernel (axo kernel ls; default: the newest import)")
	c.Flags().StringVar(&f.Image, "image", "", "make the root disk of this image (axo image ls)")
	c.Flags().StringVar(&f.Dir, "rootfs", "", "make the root disk of this directory")
	file.register(c)
	c.Flags().BoolVar(&f.Session, "session", false, "for --profile session: root and sudo work inside")
	return c
}

func (f *templateFlags) build(c *cobra.Command, name string) error {
	config, err := driverConfig(c)
	if err != nil {
		return err
	}
	return f.print(c, f.make(c, config, name), config, name)
}

func (f *templateFlags) make(c *cobra.Command, config all.Config, name string) error {
	config.Progress = f.progress(c.ErrOrStderr())
	return all.BuildTemplate(c.Context(), config, f.engineFor(config), name, f.Recipe)
}

// print says which template there is now, or why not.
func (f *templateFlags) print(c *cobra.Command, err error, config all.Config, name string) error {
	if err != nil {
		return failed(c, err, f.asJSON)
	}
	t, err := microvm.ReadTemplate(filepath.Join(config.StateDir, all.TemplatesOf(f.engineFor(config))), name)
	if err != nil {
		return failed(c, err, f.asJSON)
	}
	if f.asJSON {
		return printJSON(c.OutOrStdout(), t)
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), t.Digest)
	return err
}

func newTemplateLs() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the templates that are here",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := stateDir(c)
			if err != nil {
				return err
			}
			list := []*microvm.Template{}
			for _, engine := range microvmEngines {
				of, terr := microvm.Templates(filepath.Join(dir, all.TemplatesOf(engine)))
				list, err = append(list, of...), errors.Join(err, terr)
			}
			if asJSON {
				err = errors.Join(err, printJSON(c.OutOrStdout(), list))
			} else {
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tENGINE\tDIGEST\tACCEL\tMEMORY\tCPUS\tKERNEL\tROOT\tDISK\tBUILT")
				for _, t := range list {
					fmt.Fprintf(w, "%s\t%s\t%.19s\t%s\t%d MiB\t%d\t%s\t%s\t%s\t%s\n", t.Name, t.Engine, t.Digest, t.Shape.Accel, t.Shape.MemoryMiB, t.Shape.CPUs,
						t.Key.Kernel, t.Source, bytesOf(t.Disk.Size), t.Built.Local().Format(time.DateTime))
				}
				err = errors.Join(err, w.Flush())
			}
			if err != nil {
				return failed(c, err, false)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of templates")
	return c
}

// removeTemplate removes the template of an engine, or of all if none is named.
func removeTemplate(dir, name, engine string) error {
	engines := microvmEngines
	if engine != "" {
		engines = []string{engine}
	}
	var missing error
	gone := false
	for _, e := range engines {
		err := microvm.RemoveTemplate(filepath.Join(dir, all.TemplatesOf(e)), name)
		switch {
		case err == nil:
			gone = true
		case errors.Is(err, isolation.ErrNotFound):
			missing = err
		default:
			return err
		}
	}
	if gone {
		return nil
	}
	return missing
}

func newTemplateRm() *cobra.Command {
	var engine string
	c := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove templates",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := stateDir(c)
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				if err := removeTemplate(dir, name, engine); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(c.OutOrStdout(), "removed", name)
			}
			if err := errors.Join(errs...); err != nil {
				return failed(c, err, false)
			}
			return nil
		},
	}
	c.Flags().StringVar(&engine, "engine", "", "only that of firecracker or qemu")
	return c
}
