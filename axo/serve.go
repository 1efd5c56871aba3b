package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/audit"
	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
)

func newServe() *cobra.Command {
	var c server.Config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Keep sandboxes for many callers, over HTTP",
		Long: `Keep sandboxes that stay, for callers on a unix socket and on the loopback
address. The first start makes a key, in the file token of the state directory.

Sandboxes of the tiers oci and microvm live on, with their programs, when the
daemon ends, however it ends: the next one with the same state directory has them
again. SIGTERM ends it when requests under way have ended.

It takes sockets that systemd has opened for it, as packaging/axo.socket says, and
tells systemd when it is ready.`,
		Example: `  axo serve --listen 127.0.0.1:7330
  axo serve --e2b 127.0.0.1:7331
  axo create && axo ps`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := settings(cmd)
			if err != nil {
				return err
			}
			dir, err := makeStateDir(l)
			if err != nil {
				return err
			}
			if c.Activated, err = server.Activated(); err != nil {
				return &statusError{exitEngine, err}
			}
			log, traces, err := openTelemetry(cmd.Context(), l)
			if err != nil {
				return err
			}
			defer closeTraces(traces, log)
			c.Logger = log.Logger
			c.Telemetry = telemetry.New(telemetry.Config{Version: version, Tenants: l.Metrics.Tenants, Logger: c.Logger, Log: log, Traces: traces})
			c.AdminSocket, c.MetricsListen, c.MetricsRemote = l.Admin.Socket, l.Metrics.Listen, l.Metrics.Remote
			onEvent, observer := c.Telemetry.EngineEvent, c.Telemetry.Engine()
			if !l.Audit.Off {
				record, err := audit.Open(audit.Path(dir))
				if err != nil {
					return &statusError{exitEngine, err}
				}
				defer record.Close()
				record.OnJump = func(by time.Duration) {
					c.Logger.Error("the host's clock was set, or was wrong; sandboxes and what is kept go by the time that passed", "by", by)
				}
				c.Auditor, c.AuditKeep = &server.Auditor{Log: record, Logger: c.Logger}, time.Duration(l.Audit.Keep)
				onEvent = func(e engine.Event) {
					c.Telemetry.EngineEvent(e)
					c.Auditor.EngineEvent(e)
				}
			}
			e, err := openEngine(cmd, func(c *all.Config, ec *engine.Config) {
				c.Warm, c.WarmVMs, c.WarmDetached, c.Logger = l.Serve.Warm, l.Serve.WarmVMs, true, log.Logger
				ec.Logger, ec.OnEvent, ec.Observer = log.Logger, onEvent, observer
			})
			if err != nil {
				return err
			}
			c.StateDir, c.Engine, c.Version = dir, e, version
			tools, err := openTools(cmd)
			if err != nil {
				return errors.Join(err, e.Close())
			}
			c.Tools = &tool.Caller{Registry: tools, Engine: e}
			c.Listen, c.Socket, c.Hosts, c.Drain, c.Sweep = l.Serve.Listen, l.Serve.Socket, l.Serve.Hosts, time.Duration(l.Serve.Drain), time.Duration(l.Serve.Sweep)
			c.E2B, c.E2BDomain = l.Serve.E2B, l.Serve.E2BDomain
			c.E2BTLS = server.TLS{Self: l.Serve.E2BTLS == "self", Cert: l.Serve.E2BTLSCert, Key: l.Serve.E2BTLSKey}
			s := l.Session
			c.Sessions.Idle, c.Sessions.Life, c.Sessions.MaxIdle, c.Sessions.MaxLife = time.Duration(s.Idle), time.Duration(s.Life), time.Duration(s.MaxIdle), time.Duration(s.MaxLife)
			c.Sessions.Keep, c.Sessions.MaxEnded = int64(s.Keep), s.MaxEnded
			quotas, err := tenant.OpenQuotas(dir)
			if err != nil {
				return errors.Join(&statusError{exitEngine, err}, e.Close())
			}
			c.Quotas = quotas
			quotas.OnError = func(err error) { c.Logger.Error("read the tenants' quotas; those of before hold", "error", err) }
			others := session.Quota{Sandboxes: l.Tenant.Sandboxes, CPUs: l.Tenant.CPUs, MemoryBytes: int64(l.Tenant.Memory), DiskBytes: int64(l.Tenant.Disk), Rate: l.Tenant.Rate, Burst: l.Tenant.Burst}
			c.Sessions.Quota = func(tenant string) session.Quota {
				if q, ok := quotas.Of(tenant); ok {
					return q
				}
				return others
			}
			a := l.Admission
			c.Sessions.Sandboxes = a.Sandboxes
			c.Admission = server.Admission{Starts: a.Starts, Runs: a.Runs, Queue: a.Queue, Wait: time.Duration(a.Wait), Memory: int64(a.Memory)}
			drivers, err := driversOf(l)
			if err != nil {
				return errors.Join(err, e.Close())
			}
			images, err := openImages(cmd)
			if err != nil {
				return errors.Join(err, e.Close())
			}
			defer images.Close()
			if c.E2B != "" {
				if c.Built, err = openBuilt(cmd.Context(), l.Build, drivers, e, images, c.Logger); err != nil {
					return errors.Join(&statusError{exitEngine, err}, e.Close())
				}
			}
			c.Images, c.Templates, c.Pools = images, templatesOf{drivers, c.Logger}, func() []api.Pool { return poolsOf(e) }
			c.Sessions.OnEvent = func(e session.Event) {
				args := []any{"tenant", e.Tenant, "sandbox", e.Session}
				if e.Key != "" {
					args = append(args, "key", e.Key)
				}
				if e.Exec != "" {
					args = append(args, "exec", e.Exec)
				}
				for _, k := range slices.Sorted(maps.Keys(e.Fields)) {
					args = append(args, k, e.Fields[k])
				}
				level := slog.LevelInfo
				if e.Kind == "lost" || e.Fields["unknown"] != "" {
					level = slog.LevelWarn
				}
				c.Logger.Log(cmd.Context(), level, e.Kind, args...)
			}
			c.Ready = func(addresses []string) {
				for _, a := range addresses {
					fmt.Fprintln(cmd.OutOrStdout(), "ready:", a)
				}
				if c.E2B != "" && c.E2BTLS.Self {
					fmt.Fprintln(cmd.OutOrStdout(), "authority:", server.AuthorityPath(dir))
				}
				if err := notifyReady(); err != nil {
					c.Logger.Warn("tell the service manager that the daemon is ready", "error", err)
				}
			}
			if err := server.Run(cmd.Context(), c); err != nil {
				return &statusError{exitEngine, err}
			}
			return nil
		},
	}
	config.Register(cmd.Flags(), "serve", "session", "audit", "tenant", "admission", "admin", "metrics", "log", "build")
	return cmd
}

func newKey() *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Keys of the daemon: make them, list them, make them worthless"}
	open := func(cmd *cobra.Command) (*tenant.Keys, error) {
		dir, err := stateDir(cmd)
		if err != nil {
			return nil, err
		}
		k, err := tenant.Open(dir)
		if err != nil {
			return nil, &statusError{exitEngine, err}
		}
		return k, nil
	}
	var role string
	add := &cobra.Command{
		Use: "add TENANT", Short: "Make a key for a tenant, and print it: it is told once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := open(cmd)
			if err != nil {
				return err
			}
			secret, _, err := k.Add(args[0], tenant.Role(role))
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), secret)
			return nil
		},
	}
	add.Flags().StringVar(&role, "role", string(tenant.RoleUser), "viewer (looks at what is the tenant's), user, or admin")
	var asJSON bool
	ls := &cobra.Command{
		Use: "ls", Short: "List keys, without what they are", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := open(cmd)
			if err != nil {
				return err
			}
			list, err := k.List()
			if err != nil {
				return &statusError{exitEngine, err}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tTENANT\tROLE\tCREATED")
			for _, x := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", x.ID, x.Tenant, x.Role, x.Created.Format(time.RFC3339))
			}
			return w.Flush()
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	rm := &cobra.Command{
		Use: "rm ID", Short: "Make a key worthless", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := open(cmd)
			if err != nil {
				return err
			}
			if err := k.Remove(args[0]); err != nil {
				return &statusError{exitNotFound, err}
			}
			return nil
		},
	}
	c.AddCommand(add, ls, rm, newKeyQuota())
	return c
}
