package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/engine"
)

func newExplain() *cobra.Command {
	var f requestFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain [flags] (FILE.wasm | --python CODE | --shell CODE | --native CMD | --image REF | -- CMD) [ARG...]",
		Short: "Say where something would run, and why, without running it",
		Long: "Say in which tier and engine something would run, which were passed over and why,\nand which limits are enforced by what. Nothing of it is run.\n\n" +
			fmt.Sprintf(requestUsage, "explain"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := f.request(c, args)
			if err != nil {
				return misused(c, err, asJSON)
			}
			r.Source = "cli"
			e, err := openEngine(c)
			if err != nil {
				return failed(c, err, asJSON)
			}
			defer e.Close()
			d, err := e.Explain(c.Context(), r)
			var refused *engine.RefusedError
			if err != nil && (!errors.As(err, &refused) || asJSON) {
				return failed(c, err, asJSON)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), d)
			}
			printDecision(c.OutOrStdout(), r, d, refused != nil)
			if refused != nil {
				return &statusError{code: exitRefused}
			}
			return nil
		},
	}
	f.register(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printDecision(w io.Writer, r engine.Request, d engine.Decision, refused bool) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintf(t, "requirement\t%v\n", r.Spec.Requirement)
	fmt.Fprintf(t, "ideal tier\t%v\n", d.Wanted)
	fmt.Fprintf(t, "least tier\t%v\n", d.MinTier)
	if d.Rule != "" {
		fmt.Fprintf(t, "policy rule\t%s\n", printable(d.Rule))
	}
	if refused {
		fmt.Fprintf(t, "runs in\tnowhere: refused\n")
	} else {
		fmt.Fprintf(t, "runs in\t%v, engine %s%s\n", d.Got, d.Engine, marks(d))
	}
	for _, s := range d.Skipped {
		who := s.Tier.String()
		if s.Engine != "" {
			who += "/" + s.Engine
		}
		why := s.Reason
		if s.Fix != "" {
			why += "; " + s.Fix
		}
		fmt.Fprintf(t, "not %s\t%s\n", who, why)
	}
	for _, l := range d.Enforced {
		if l.Enforced {
			fmt.Fprintf(t, "limit %s\tenforced: %s\n", l.Limit, l.By)
		} else {
			fmt.Fprintf(t, "limit %s\tNOT enforced: %s\n", l.Limit, l.Reason)
		}
	}
	for _, m := range d.Warnings {
		fmt.Fprintf(t, "warning\t%s\n", m)
	}
}

func marks(d engine.Decision) string {
	s := ""
	if d.Degraded {
		s += " (degraded: through an interpreter in WebAssembly)"
	}
	if d.Emulated {
		s += " (emulated)"
	}
	return s
}
