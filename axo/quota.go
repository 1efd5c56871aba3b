package main

import (
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
)

func newKeyQuota() *cobra.Command {
	var asJSON, none bool
	var q session.Quota
	var memory, disk string
	bounds := []string{"sandboxes", "snapshots", "cpus", "memory", "disk", "rate", "burst"}
	c := &cobra.Command{
		Use:   "quota [TENANT]",
		Short: "What tenants may have at once: list it, or set it for one",
		Long: `Without a tenant, list the tenants that have a quota of their own. With one, set
its quota: what no flag names has no bound. It holds at once, also in a daemon that
runs; what there is already stays.`,
		Example: "  axo key quota alice --sandboxes 10 --cpus 4 --memory 8G --rate 2",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := stateDir(cmd)
			if err != nil {
				return err
			}
			quotas, err := tenant.OpenQuotas(dir)
			if err != nil {
				return &statusError{exitEngine, err}
			}
			if len(args) == 1 {
				for flag, to := range map[string]*int64{"memory": &q.MemoryBytes, "disk": &q.DiskBytes} {
					text := map[string]string{"memory": memory, "disk": disk}[flag]
					if text == "" {
						continue
					}
					var n config.Size
					if err := n.UnmarshalText([]byte(text)); err != nil {
						return &statusError{exitUsage, fmt.Errorf("--%s: %w", flag, err)}
					}
					*to = int64(n)
				}
				set := &q
				if none {
					if q != (session.Quota{}) {
						return &statusError{exitUsage, fmt.Errorf("--none takes the quota of %s away: it goes with no other flag", args[0])}
					}
					set = nil
				} else if !slices.ContainsFunc(bounds, cmd.Flags().Changed) {
					return &statusError{exitUsage, fmt.Errorf("no flag says what %s may have; --none takes its quota away", args[0])}
				}
				if err := quotas.Set(args[0], set); err != nil {
					return failed(cmd, err, asJSON)
				}
			}
			all, err := quotas.All()
			if err != nil {
				return &statusError{exitEngine, err}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "TENANT\tSANDBOXES\tSNAPSHOTS\tCPUS\tMEMORY\tDISK\tRATE")
			for _, name := range slices.Sorted(maps.Keys(all)) {
				q := all[name]
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, bound(q.Sandboxes), bound(q.Snapshots), bound(q.CPUs), bound(config.Size(q.MemoryBytes)), bound(config.Size(q.DiskBytes)), bound(q.Rate))
			}
			return w.Flush()
		},
	}
	f := c.Flags()
	f.IntVar(&q.Sandboxes, "sandboxes", 0, "sandboxes at once")
	f.IntVar(&q.Snapshots, "snapshots", 0, "snapshots")
	f.Float64Var(&q.CPUs, "cpus", 0, "cores that its sandboxes may have together")
	f.StringVar(&memory, "memory", "", "memory that its sandboxes may have together, such as 4G")
	f.StringVar(&disk, "disk", "", "what its sandboxes may write together, such as 10G")
	f.Float64Var(&q.Rate, "rate", 0, "sandboxes and runs that it may begin in a second")
	f.IntVar(&q.Burst, "burst", 0, "how many it may begin at once when it has begun none for a while")
	f.BoolVar(&none, "none", false, "take the tenant's quota away: it has what the daemon gives to others")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// bound is a number of a quota, of which 0 is none.
func bound[T comparable](n T) string {
	var zero T
	if n == zero {
		return "-"
	}
	return fmt.Sprint(n)
}
