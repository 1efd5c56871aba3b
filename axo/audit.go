package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/audit"
)

func newAudit() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit",
		Short: "What the daemon was asked for, and what happened",
		Long: `What the daemon was asked for, and what happened: each entry has the hash of the
one before it. These commands read the log in the state directory; over the API it is
/v1/audit. What can't be told from the log alone is that its newest entries were cut
off: note down what axo audit head prints, elsewhere, and verify against it.`,
	}
	c.AddCommand(newAuditLs(), newAuditVerify(), newAuditExport(), newAuditHead(), newAuditPrune())
	return c
}

// withAudit opens the log for a command that only reads it.
func withAudit(c *cobra.Command, f func(*audit.Log) error) error {
	l, err := settings(c)
	if err != nil {
		return err
	}
	log, err := audit.OpenToRead(audit.Path(l.StateDir))
	if err != nil {
		return &statusError{failureStatus(c.Context(), err), err}
	}
	defer log.Close()
	if err := f(log); err != nil {
		return &statusError{exitEngine, err}
	}
	return nil
}

// auditFlags say which entries are wanted.
type auditFlags struct {
	audit.Query
	since, until string
}

func (f *auditFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.Tenant, "tenant", "", "only this tenant's")
	c.Flags().StringVar(&f.Kind, "kind", "", "only entries of this kind, such as request, refused, created, exec, ran, deleted, egress")
	c.Flags().StringVar(&f.Subject, "subject", "", "only those of this sandbox or run")
	c.Flags().StringVar(&f.since, "since", "", "only those from then on: 2h, or 2026-01-31T12:00:00Z")
	c.Flags().StringVar(&f.until, "until", "", "only those before then")
	c.Flags().Int64Var(&f.After, "after", 0, "only those after this one, by its number")
}

func (f *auditFlags) query() (audit.Query, error) {
	for _, x := range []struct {
		flag, v string
		to      *time.Time
	}{{"since", f.since, &f.Since}, {"until", f.until, &f.Until}} {
		if x.v == "" {
			continue
		}
		if d, err := time.ParseDuration(x.v); err == nil && d > 0 {
			*x.to = time.Now().Add(-d)
		} else if *x.to, err = time.Parse(time.RFC3339, x.v); err != nil {
			return f.Query, fmt.Errorf("--%s is %.80q: want how long ago, such as 2h, or a time such as 2026-01-31T12:00:00Z", x.flag, x.v)
		}
	}
	return f.Query, nil
}

func newAuditLs() *cobra.Command {
	var f auditFlags
	var asJSON bool
	c := &cobra.Command{
		Use: "ls", Short: "List entries, the newest last", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			q, err := f.query()
			if err != nil {
				return err
			}
			q.Newest = q.After == 0
			return withAudit(c, func(l *audit.Log) error {
				list, err := l.List(c.Context(), q)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(w, "SEQ\tTIME\tKIND\tTENANT\tKEY\tSUBJECT\tEXEC\tWHAT")
				for _, e := range list {
					what := make([]string, 0, len(e.Fields))
					for _, k := range slices.Sorted(maps.Keys(e.Fields)) {
						what = append(what, k+"="+e.Fields[k])
					}
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Seq, e.Time.Format(time.RFC3339), printable(e.Kind), printable(e.Tenant), printable(e.Key),
						printable(e.Subject), printable(e.Exec), printable(strings.Join(what, " ")))
				}
				return w.Flush()
			})
		},
	}
	f.register(c)
	c.Flags().IntVarP(&f.Limit, "limit", "n", 100, "how many at most; 0: all")
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return c
}

func newAuditExport() *cobra.Command {
	var f auditFlags
	c := &cobra.Command{
		Use: "export", Short: "Print entries as lines of JSON, with their hashes", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			q, err := f.query()
			if err != nil {
				return err
			}
			return withAudit(c, func(l *audit.Log) error {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetEscapeHTML(false)
				return l.Each(c.Context(), q, func(e audit.Entry) error { return enc.Encode(e) })
			})
		},
	}
	f.register(c)
	return c
}

func newAuditVerify() *cobra.Command {
	var heads []string
	var asJSON bool
	c := &cobra.Command{
		Use: "verify", Short: "Check that no entry was changed, taken out or put in", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var known []audit.Head
			for _, h := range heads {
				head, err := audit.ParseHead(h)
				if err != nil {
					return err
				}
				known = append(known, head)
			}
			return withAudit(c, func(l *audit.Log) error {
				r, err := l.Verify(c.Context(), known...)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), r)
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%d entries from %d on are as they were written; head %v\n", r.Entries, r.First, r.Head)
				return err
			})
		},
	}
	c.Flags().StringArrayVar(&heads, "head", nil, "a head that was noted down: SEQ:HASH; may be repeated")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newAuditHead() *cobra.Command {
	return &cobra.Command{
		Use: "head", Short: "Print the newest entry's number and hash, to note down elsewhere", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withAudit(c, func(l *audit.Log) error {
				h, err := l.Head()
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), h)
				return err
			})
		},
	}
}

func newAuditPrune() *cobra.Command {
	var before string
	c := &cobra.Command{
		Use: "prune --before TIME", Short: "Remove entries from before a time; that it was done is an entry", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f := auditFlags{until: before}
			q, err := f.query()
			if err != nil || before == "" {
				return fmt.Errorf("--before is %.80q: want how long ago, such as 720h, or a time such as 2026-01-31T12:00:00Z", before)
			}
			// Only a log that is there.
			if err := withAudit(c, func(l *audit.Log) error { _, err := l.Verify(context.WithoutCancel(c.Context())); return err }); err != nil {
				return err
			}
			s, err := settings(c)
			if err != nil {
				return err
			}
			l, err := audit.Open(audit.Path(s.StateDir))
			if err != nil {
				return &statusError{exitEngine, err}
			}
			defer l.Close()
			n, err := l.Prune(time.Since(q.Until))
			if err != nil {
				return &statusError{exitEngine, err}
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%d entries removed\n", n)
			return err
		},
	}
	c.Flags().StringVar(&before, "before", "", "how long ago, such as 720h, or a time")
	return c
}
