package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/image"
)

// fileFlags are those of template build with --file.
type fileFlags struct {
	file, context, start, ready string
	hosts                       []string
	noCache                     bool
}

func (f *fileFlags) register(c *cobra.Command) {
	fs := c.Flags()
	fs.StringVarP(&f.file, "file", "f", "", "build the image NAME of a Dockerfile: FROM, COPY, RUN, ENV, WORKDIR, USER, ENTRYPOINT and CMD")
	fs.StringVar(&f.context, "context", "", "with --file: where COPY takes files from (default: where the file is)")
	fs.StringVar(&f.start, "start", "", "with --file: command that runs in each of E2B's sandboxes of it from the beginning")
	fs.StringVar(&f.ready, "ready", "", "with --start: command that succeeds when that is ready")
	fs.StringArrayVar(&f.hosts, "allow-host", nil, "with --file: let the steps reach HOST[:PORT] by HTTP(S) through a proxy, as axo run does; may be repeated")
	fs.BoolVar(&f.noCache, "no-cache", false, "with --file: run all steps, also those that were run before")
}

// build builds an image, each step of it in a container.
func (f *fileFlags) build(c *cobra.Command, name string, quiet, asJSON bool) error {
	return withImages(c, asJSON, func(s *image.Store) (err error) {
		in, err := os.Open(f.file)
		if err != nil {
			return err
		}
		defer in.Close()
		d, err := build.ParseDockerfile(in)
		if err != nil {
			return fmt.Errorf("%s: %w", f.file, err)
		}
		d.Start, d.Ready, d.Force = f.start, f.ready, f.noCache
		if f.context == "" {
			f.context = filepath.Dir(f.file)
		}
		files, err := d.Pack(f.context)
		if err != nil {
			return err
		}
		defer files.Close()
		l, err := settings(c)
		if err != nil {
			return err
		}
		drivers, err := driversOf(l)
		if err != nil {
			return err
		}
		e, err := openEngine(c)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, e.Close()) }()
		b := l.Build
		b.AllowHosts = append(slices.Clone(b.AllowHosts), f.hosts...)
		b.Registries = []string{"*"} // as axo image pull has it, which he could call himself
		img, err := builderOf(b, drivers, e, s).Build(c.Context(), build.Input{
			Plan: d.Plan, Name: name, Own: true, Files: files.Open, Log: func(e build.Entry) {
				if !quiet {
					fmt.Fprintln(c.ErrOrStderr(), printable(e.Message))
				}
			},
		})
		if err != nil {
			return err
		}
		return printImage(c, img, asJSON)
	})
}
