package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/signature"
	"github.com/axocoatl/isolation/engine"
)

func newExplain() *cobra.Command {
	var f requestFlags
	var asJSON bool
	var ref string
	c := &cobra.Command{
		Use:   "explain [flags] (--tool NAME | FILE.wasm | --python CODE | --shell CODE | --native CMD | --image REF | -- CMD) [ARG...]",
		Short: "Say where something would run, and why, without running it",
		Long: "Say in which tier and engine something would run, which were passed over and why,\nand which limits are enforced by what. Nothing of it is run.\n\n" +
			fmt.Sprintf(requestUsage, "explain"),
		RunE: func(c *cobra.Command, args []string) error {
			var r engine.Request
			var err error
			if ref != "" {
				r, err = explainTool(c, ref, args)
			} else if r, err = f.request(c, args); err != nil {
				return misused(c, err, asJSON)
			}
			if err != nil {
				return failed(c, err, asJSON)
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
	c.Flags().StringVar(&ref, "tool", "", "a call of this registered tool, NAME[@VERSION]; of the other flags --tenant alone goes with it")
	return c
}

// explainTool is the request of a tool's call.
func explainTool(c *cobra.Command, ref string, args []string) (engine.Request, error) {
	other := ""
	c.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "tool" && f.Name != "tenant" && f.Name != "json" && c.LocalFlags().Lookup(f.Name) != nil && c.InheritedFlags().Lookup(f.Name) == nil {
			other = "--" + f.Name
		}
	})
	if len(args) > 0 {
		other = args[0]
	}
	if other != "" {
		return engine.Request{}, fmt.Errorf("%s does not go with --tool: what a call is the tool's manifest says: %w", other, isolation.ErrInvalidArgument)
	}
	reg, err := openTools(c)
	if err != nil {
		return engine.Request{}, err
	}
	t, err := reg.Get(ref)
	if err != nil {
		return engine.Request{}, err
	}
	r, err := t.Request()
	r.Spec.Tenant, _ = c.Flags().GetString("tenant")
	return r, err
}

func printDecision(w io.Writer, r engine.Request, d engine.Decision, refused bool) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	defer t.Flush()
	if r.Tool != "" {
		fmt.Fprintf(t, "tool\t%s\n", r.Tool)
	}
	if r.Signer != "" {
		fmt.Fprintf(t, "signed by\t%s\n", signature.Key(r.Signer).Fingerprint())
	}
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
