package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/engine"
)

// maxRefused is how much is told of what a program was refused.
const maxRefused = 10

// printRefused tells a person why a program did not get what it asked for.
func printRefused(w io.Writer, r *engine.EgressReport) {
	if r == nil {
		return
	}
	told := int64(0)
	for _, c := range r.Connections {
		if c.Reason != "" && told < maxRefused {
			told++
			fmt.Fprintf(w, "axo: network: %s: %s\n", printable(c.Host), printable(c.Reason))
		}
	}
	if more := r.Denied - told; told == maxRefused && more > 0 {
		fmt.Fprintf(w, "axo: network: %d more\n", more)
	}
}

func newEgress() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "egress SANDBOX", Short: "List what a sandbox of the daemon's asked for of the network", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				r, err := d.Egress(ctx, args[0])
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(c.OutOrStdout(), r)
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(w, "TIME\tHOST\tADDRESS\tALLOWED\tSENT\tRECEIVED\tREASON")
				for _, x := range r.Connections {
					fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%d\t%d\t%s\n", x.Time.Format(time.RFC3339), printable(x.Host), x.Address, x.Allowed, x.Sent, x.Received, printable(x.Reason))
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
