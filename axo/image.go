package main

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/image"
)

func newImage() *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Pull, import, list and remove container images",
	}
	c.AddCommand(newImagePull(), newImageImport(), newImageLs(), newImageRm(), newImageGC())
	return c
}

// openImages opens the image store. The caller closes it.
func openImages(c *cobra.Command) (*image.Store, error) {
	dir, err := stateDir(c)
	if err != nil {
		return nil, err
	}
	s, err := image.Open(image.Config{Dir: filepath.Join(dir, all.ImagesDir)})
	if err != nil {
		return nil, &statusError{exitEngine, err}
	}
	return s, nil
}

// withImages runs a command on the image store, and reports its error as others
// are.
func withImages(c *cobra.Command, asJSON bool, f func(*image.Store) error) error {
	s, err := openImages(c)
	if err != nil {
		return failed(c, err, asJSON)
	}
	defer s.Close()
	if err := f(s); err != nil {
		return failed(c, err, asJSON)
	}
	return nil
}

func newImagePull() *cobra.Command {
	var asJSON, insecure, quiet bool
	var o image.PullOptions
	c := &cobra.Command{
		Use:   "pull [flags] REF",
		Short: "Fetch an image from a registry and unpack it",
		Long: `Fetch an image from a registry and unpack it. REF is as elsewhere: alpine:3 is
docker.io/library/alpine:3; registry.example/name@sha256:... is exactly that image.
Content that is here already is not fetched again; a pull that was interrupted is
taken up where it ended. Credentials are those that docker login or podman login
wrote. The manifest's digest is printed.`,
		Example: `  axo image pull alpine:3
  axo image pull --platform linux/arm64 ghcr.io/o/tool@sha256:...
  axo image pull localhost:5000/tool`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withImages(c, asJSON, func(s *image.Store) error {
				o.Insecure = insecure
				p := newProgress(c.ErrOrStderr(), quiet)
				o.Progress = p.event
				img, err := s.Pull(c.Context(), args[0], o)
				p.done()
				if err != nil {
					return err
				}
				return printImage(c, img, asJSON)
			})
		},
	}
	c.Flags().StringVar(&o.Platform, "platform", "", "os/architecture[/variant] (default "+image.HostPlatform()+")")
	c.Flags().BoolVar(&insecure, "insecure", false, "allow plain HTTP to a registry that is not on this host")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with the image")
	return c
}

func newImageImport() *cobra.Command {
	var asJSON, quiet bool
	var o image.ImportOptions
	var config image.RunConfig
	c := &cobra.Command{
		Use:   "import [flags] FILE|DIR",
		Short: "Take an image from a file or directory",
		Long: `Take an image from what docker save or podman save wrote, from an OCI image layout
(a directory or a tar), or from a tar of a root filesystem, which becomes an image
of one layer; only then the flags for its config are allowed. Tars may be
compressed with gzip or zstd. The manifest's digest is printed.`,
		Example: `  docker save tool:1 | gzip > tool.tar.gz && axo image import tool.tar.gz
  mmdebstrap --variant=minbase stable root.tar && axo image import --name debian root.tar
  axo image import --name box --entrypoint /bin/sh --workdir /work --env A=1 root.tar.zst`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, f := range []string{"entrypoint", "cmd", "env", "workdir", "user"} {
				if c.Flags().Changed(f) {
					o.Config = &config
				}
			}
			for _, kv := range config.Env {
				if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
					return fmt.Errorf("--env %q: want KEY=VALUE", kv)
				}
			}
			if config.WorkingDir != "" && !strings.HasPrefix(config.WorkingDir, "/") {
				return fmt.Errorf("--workdir %q: want an absolute path", config.WorkingDir)
			}
			return withImages(c, asJSON, func(s *image.Store) error {
				p := newProgress(c.ErrOrStderr(), quiet)
				o.Progress = p.event
				img, err := s.Import(c.Context(), args[0], o)
				p.done()
				if err != nil {
					return err
				}
				return printImage(c, img, asJSON)
			})
		},
	}
	fs := c.Flags()
	fs.StringVar(&o.Name, "name", "", "name of the image (default: the one that the archive has)")
	fs.StringVar(&o.Select, "select", "", "which image of an archive with several: a name in it, or a digest")
	fs.StringVar(&o.Platform, "platform", "", "os/architecture[/variant] (default "+image.HostPlatform()+")")
	fs.StringArrayVar(&config.Entrypoint, "entrypoint", nil, "root filesystem: the program; repeat for its first arguments")
	fs.StringArrayVar(&config.Cmd, "cmd", nil, "root filesystem: an argument that is used if none is given; may be repeated")
	fs.StringArrayVarP(&config.Env, "env", "e", nil, "root filesystem: environment variable KEY=VALUE; may be repeated")
	fs.StringVar(&config.WorkingDir, "workdir", "", "root filesystem: working directory")
	fs.StringVar(&config.User, "user", "", "root filesystem: user, name or uid[:gid]")
	fs.BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object with the image")
	return c
}

func printImage(c *cobra.Command, img image.Image, asJSON bool) error {
	if asJSON {
		return printJSON(c.OutOrStdout(), img)
	}
	_, err := fmt.Fprintln(c.OutOrStdout(), img.Digest)
	return err
}

func newImageLs() *cobra.Command {
	var asJSON, all bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the images that are here",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withImages(c, asJSON, func(s *image.Store) error {
				list, err := s.List()
				if !all {
					list = slices.DeleteFunc(list, build.Private)
				}
				if asJSON {
					return cmp.Or(err, printJSON(c.OutOrStdout(), list))
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tDIGEST\tPLATFORM\tLAYERS\tSIZE\tUNPACKED\tADDED")
				for _, img := range list {
					names := img.Names
					if len(names) == 0 {
						names = []string{"-"}
					}
					for _, n := range names {
						fmt.Fprintf(w, "%s\t%.19s\t%s\t%d\t%s\t%s\t%s\n", image.FamiliarName(n), img.Digest, printable(img.Platform),
							len(img.Layers), bytesOf(img.Size), bytesOf(img.UnpackedSize), img.Added.Local().Format(time.DateTime))
					}
				}
				return errors.Join(w.Flush(), err)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of images")
	c.Flags().BoolVarP(&all, "all", "a", false, "also templates of E2B's clients, and layers that are kept to build with")
	return c
}

func newImageRm() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "rm [flags] NAME|DIGEST...",
		Short: "Remove names of images, and images with their last name",
		Long: `Remove names of images, and an image with its last name; a digest, or at least four
digits of one, removes the image with all of its names. What no other image has of
it is deleted at once, unless something uses it: then axo image gc does that later.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withImages(c, asJSON, func(s *image.Store) error {
				list := []image.Removed{}
				var errs []error
				for _, ref := range args {
					rm, err := s.Remove(c.Context(), ref)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					list = append(list, rm)
					if asJSON {
						continue
					}
					for _, n := range rm.Names {
						fmt.Fprintln(c.OutOrStdout(), "untagged", image.FamiliarName(n))
					}
					if rm.Image {
						fmt.Fprintln(c.OutOrStdout(), "removed", rm.Digest)
					}
				}
				freed, err := s.GC(c.Context(), image.GCOptions{KeepPartial: true})
				errs = append(errs, err)
				if err := errors.Join(errs...); err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), struct {
						Removed []image.Removed `json:"removed"`
						Freed   image.Freed     `json:"freed"`
					}{list, freed})
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with what was removed")
	return c
}

func newImageGC() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "gc",
		Short: "Delete what no image and nothing that runs needs",
		Long: `Delete the blobs and layers that no image and nothing that runs needs, and the
unfinished downloads that nobody works on.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withImages(c, asJSON, func(s *image.Store) error {
				freed, err := s.GC(c.Context(), image.GCOptions{})
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), freed)
				}
				fmt.Fprintf(c.OutOrStdout(), "freed %s: blobs %d, layers %d, unfinished downloads %d, leftovers of killed processes %d\n",
					bytesOf(freed.Bytes), freed.Blobs, freed.Layers, freed.Partial, freed.Temp)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with what was freed")
	return c
}

// bytesOf shows a size as people read it.
func bytesOf(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, exp := float64(n)/unit, 0
	for f >= unit && exp < 4 {
		f /= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[exp])
}
