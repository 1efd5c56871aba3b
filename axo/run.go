package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

func newRun() *cobra.Command {
	var f requestFlags
	var asJSON, local bool
	var spill string
	c := &cobra.Command{
		Use:   "run [flags] (FILE.wasm | --python CODE | --shell CODE | --native CMD | --image REF | -- CMD) [ARG...]",
		Short: "Run something in the strongest tier that can run it",
		Long: "Run something once, in the strongest tier of isolation that this host has and that\ncan run it, and pass its input, output and exit status through.\n\n" + viaDaemon +
			fmt.Sprintf(requestUsage, "run") + "\n\n" + exitHelp,
		Example: `  echo '{"items":[]}' | axo run --timeout 2s tool.wasm
  axo run --memory 64M --dir ./data:/data:ro --json summary.wasm /data
  axo run --native -- uname -a`,
		RunE: func(c *cobra.Command, args []string) error {
			r, err := f.request(c, args)
			switch {
			case err != nil:
			case asJSON:
				r.Capture = engine.DefaultCapture
			case spill != "":
				err = errors.New("--spill goes with --json; without it, redirect the output")
			}
			if err == nil && spill != "" {
				if r.Capture.SpillBytes, err = parseSize(spill); err != nil {
					err = fmt.Errorf("--spill: %w", err)
				}
			}
			if err != nil {
				return misused(c, err, asJSON)
			}
			return run(c, r, f.interactive, asJSON, local)
		},
	}
	f.register(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with the result instead of the output")
	c.Flags().BoolVar(&local, "local", false, "run it by this process, and not by the daemon that is there")
	c.Flags().StringVar(&spill, "spill", "", "with --json: also keep up to this size of each stream in a file, which the result names")
	return c
}

const viaDaemon = `Where a daemon is there (axo serve; $AXO_ADDRESS names another) it runs it. What is
given directories or files of this host, or runs without isolation, is run by this
process, with its user's rights.

`

func run(c *cobra.Command, r engine.Request, interactive, asJSON, local bool) error {
	var e *engine.Engine
	var there engine.Decision
	l, err := settings(c)
	if err == nil && !local && !ownOnly(l, r) {
		e, there, err = throughDaemon(c.Context(), l, r)
	}
	remote := e != nil
	if err == nil && !remote {
		e, err = openEngine(c)
	}
	if err != nil {
		return failed(c, err, asJSON)
	}
	defer e.Close()
	// A terminal is passed on only if asked: most tools read no input, and
	// one that does would seem to hang.
	r.Source = "cli"
	if interactive || !term.IsTerminal(int(os.Stdin.Fd())) {
		r.Stdin = os.Stdin
	}
	if !asJSON {
		r.Stdout, r.Stderr = os.Stdout, os.Stderr
	}
	restore, err := terminal(&r)
	if err != nil {
		return &statusError{exitEngine, err}
	}
	res, err := e.Run(c.Context(), r)
	restore()
	if res != nil && !asJSON {
		printRefused(c.ErrOrStderr(), res.Egress)
	}
	if remote && res != nil {
		res.Decision = there
	}
	if err != nil {
		return failedWith(c, err, asJSON, res)
	}
	if asJSON {
		if err := printJSON(c.OutOrStdout(), res); err != nil {
			return &statusError{exitEngine, err}
		}
	}
	return ended(res.Exit, context.Cause(c.Context()), !asJSON)
}

// failure is what --json prints when the engine could not run something.
type failure struct {
	Error failureDetail `json:"error"`
}

type failureDetail struct {
	Class    string            `json:"class"` // of nine, or "internal"
	Message  string            `json:"message"`
	Outcome  isolation.Outcome `json:"outcome"`
	Decision *engine.Decision  `json:"decision,omitempty"` // when no tier may run it
	Result   *engine.Result    `json:"result,omitempty"`   // what is known, when it may have run
}

// misused reports a command line that is wrong: nothing was tried.
func misused(c *cobra.Command, err error, asJSON bool) error {
	status := &statusError{code: exitUsage}
	if !errors.As(err, &status) {
		status.err = err
	}
	if !asJSON {
		return status
	}
	class := isolation.ErrInvalidArgument
	if status.code == exitNotFound {
		class = isolation.ErrNotFound
	}
	d := failureDetail{Class: class.Error(), Message: err.Error(), Outcome: isolation.NotStarted}
	if perr := printJSON(c.OutOrStdout(), failure{d}); perr != nil {
		return &statusError{exitEngine, perr}
	}
	return &statusError{code: status.code}
}

// failed reports an error of the engine, and gives it its exit status.
func failed(c *cobra.Command, err error, asJSON bool) error { return failedWith(c, err, asJSON, nil) }

func failedWith(c *cobra.Command, err error, asJSON bool, known *engine.Result) error {
	status := &statusError{code: failureStatus(c.Context(), err), err: err}
	if !asJSON {
		return status
	}
	d := failureDetail{Class: "internal", Message: plain(err), Outcome: isolation.OutcomeOf(err), Result: known}
	if class := isolation.Class(err); class != nil {
		d.Class = class.Error()
	}
	var refused *engine.RefusedError
	if errors.As(err, &refused) {
		d.Outcome, d.Decision = isolation.NotStarted, &refused.Decision
	}
	if perr := printJSON(c.OutOrStdout(), failure{d}); perr != nil {
		return &statusError{exitEngine, perr}
	}
	status.err = nil
	return status
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
