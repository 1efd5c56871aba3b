package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/client"
)

func newSnapshot() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "snapshot SANDBOX [NAME]",
		Short: "Write a sandbox of the daemon's to the disk, with what runs in it",
		Long: `Write a sandbox of the daemon's to the disk whole, with what runs in it, and print
the snapshot's name. The sandbox goes on. axo create --from-snapshot NAME makes
another of it, as often as wanted. Virtual machines of QEMU can be written so.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				x, err := d.Snapshot(ctx, args[0], strings.Join(args[1:], ""))
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(c.OutOrStdout(), x)
				}
				fmt.Fprintln(c.OutOrStdout(), x.Name)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print all that is known of it")
	return c
}

func newSnapshots() *cobra.Command {
	c := &cobra.Command{
		Use: "snapshots", Short: "List and remove snapshots of sandboxes", Args: cobra.NoArgs,
	}
	var asJSON bool
	ls := &cobra.Command{
		Use: "ls", Short: "List the snapshots that are there", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				list, err := d.Snapshots(ctx)
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(c.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tID\tSTATUS\tSANDBOX\tTIER\tENGINE\tPROGRAMS\tAGE")
				for _, x := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%v\t%s\t%d\t%v\n", x.Name, x.ID, x.Status, x.Sandbox, x.Tier, x.Engine, len(x.Programs),
						time.Since(x.Created).Round(time.Second))
				}
				return w.Flush()
			})
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	rm := &cobra.Command{
		Use: "rm NAME...", Short: "Remove snapshots; sandboxes that were made of them go on", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				var errs []error
				for _, name := range args {
					errs = append(errs, d.RemoveSnapshot(ctx, name))
				}
				return errors.Join(errs...)
			})
		},
	}
	c.AddCommand(ls, rm)
	return c
}

func newFork() *cobra.Command {
	var n int
	var asJSON bool
	c := &cobra.Command{
		Use:   "fork SANDBOX",
		Short: "Make copies of a sandbox of the daemon's, with what runs in it",
		Long: `Make copies of a sandbox of the daemon's, with what runs in it, and print their
ids. The sandbox goes on. Virtual machines of QEMU can be copied so.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if n < 1 || n > 64 {
				return errors.New("-n: want 1 to 64 copies")
			}
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				list, err := d.Fork(ctx, args[0], make([]api.Copy, n)...)
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(c.OutOrStdout(), list)
				}
				for _, s := range list {
					fmt.Fprintln(c.OutOrStdout(), s.ID)
				}
				return nil
			})
		},
	}
	c.Flags().IntVarP(&n, "number", "n", 1, "how many")
	c.Flags().BoolVar(&asJSON, "json", false, "print all that is known of them")
	return c
}
