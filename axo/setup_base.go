package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/base"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/image"
)

// baseDir is where what the image is made of is kept, in the state directory.
const baseDir = "base"

func newSetupBase() *cobra.Command {
	var o base.Config
	var vm, quiet, asJSON bool
	c := &cobra.Command{
		Use:   "base",
		Short: "Make the image base of Debian's packages, in which agents' code finds what it expects",
		Long: `Make the image base of Debian's packages: bash, python3 (also as python), pip, git,
curl, and the user "user" (1000) at /home/user, who may do anything in his sandbox
with sudo, in the profile session. It is what E2B's clients have as template base.

It takes mmdebstrap: on Debian and Ubuntu, apt-get install mmdebstrap uidmap. That
works in a user namespace, as any user who has a range of ids in /etc/subuid. What was
downloaded is kept in the state directory; an image that is there as it should be
stays. An image that sandboxes use can be replaced, they keep what they have.`,
		Example: `  axo setup base
  axo setup base --node --package build-essential --again
  axo run --profile session --image base -- sudo id`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f := templateFlags{quiet: quiet, Recipe: microvm.Recipe{MemoryMiB: defaultTemplateMiB, CPUs: 1}}
			step := f.progress(c.ErrOrStderr())
			o.Progress = step
			dir, err := stateDir(c)
			if err != nil {
				return err
			}
			o.Dir = filepath.Join(dir, baseDir)
			var r base.Result
			if err := withImages(c, asJSON, func(s *image.Store) error {
				o.Images = s
				r, err = base.Make(c.Context(), o)
				return err
			}); err != nil {
				return err
			}
			if vm {
				if err := f.machineOf(c, r.Image.Digest, step); err != nil {
					return failed(c, err, asJSON)
				}
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), r)
			}
			step(fmt.Sprintf("%s: %s, %s unpacked, %.0f s", base.Name, bytesOf(r.Image.Size), bytesOf(r.Image.UnpackedSize), r.Seconds))
			_, err = fmt.Fprintln(c.OutOrStdout(), r.Image.Digest)
			return err
		},
	}
	fs := c.Flags()
	fs.BoolVar(&o.Node, "node", false, "with Node and npm")
	fs.StringArrayVar(&o.Packages, "package", nil, "a further package of Debian; may be repeated")
	fs.StringVar(&o.Suite, "suite", base.DefaultSuite, "release of Debian")
	fs.StringVar(&o.Mirror, "mirror", "", "where the packages are (default Debian's own, with its security updates)")
	fs.StringVar(&o.Mode, "mode", "unshare", "how mmdebstrap works: unshare, root or fakechroot")
	fs.BoolVar(&o.Offline, "offline", false, "make it of what was downloaded before")
	fs.BoolVar(&o.Again, "again", false, "make it anew")
	fs.BoolVar(&vm, "microvm", false, "also prepare the machine of which virtual machines of it are copies, so that the first one is not waited for")
	fs.BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object with the image")
	return c
}

// machineOf makes a virtual machine of an image, in which root and sudo work, and removes
// it: its template stays.
func (f *templateFlags) machineOf(c *cobra.Command, digest string, step func(string)) error {
	config, err := driverConfig(c)
	if err != nil {
		return err
	}
	if err := microvm.Installed(config.MicroVM(f.engineFor(config))); err != nil {
		return err
	}
	if err := ensureKernel(c.Context(), filepath.Join(config.StateDir, all.KernelsDir), step); err != nil {
		return err
	}
	// The default template says how machines are here.
	f.engine = f.engineFor(config)
	if all.CheckTemplate(c.Context(), config, f.engine, microvm.DefaultTemplate) != nil {
		if err := f.make(c, config, microvm.DefaultTemplate); err != nil {
			return err
		}
	}
	e, err := openEngine(c)
	if err != nil {
		return err
	}
	defer e.Close()
	tier := isolation.TierMicroVM
	sb, _, err := e.Create(c.Context(), engine.Request{
		Spec: isolation.Spec{Requirement: isolation.Arbitrary, Root: isolation.Root{Image: digest}, Profile: "session"}, Tier: &tier, AllowEmulated: true, Source: "setup",
	})
	if err != nil {
		return err
	}
	return sb.Delete(c.Context())
}
