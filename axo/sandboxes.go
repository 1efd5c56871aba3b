package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/engine"
)

// dial returns a client of the daemon: where the settings say, else on its socket,
// with the key that is in the state directory.
func dial(c *cobra.Command) (*client.Driver, error) {
	l, err := settings(c)
	if err != nil {
		return nil, err
	}
	address, key := l.Client.Address, l.Client.APIKey
	if address == "" || key == "" {
		dir, err := makeStateDir(l)
		if err != nil {
			return nil, err
		}
		if address == "" {
			socket := l.Serve.Socket
			if socket == "" {
				socket = server.SocketPath(dir)
			}
			address = (&url.URL{Scheme: "unix", Path: socket}).String()
		}
		if key == "" {
			b, err := os.ReadFile(tenant.TokenPath(dir))
			if err != nil {
				return nil, &statusError{exitEngine, fmt.Errorf("no key: %w; start axo serve, or set AXO_ADDRESS and AXO_API_KEY", err)}
			}
			key = strings.TrimSpace(string(b))
		}
	}
	cc := client.Config{Address: address, Key: key}
	if f := c.Flags().Lookup(tenantFlag); f != nil {
		cc.Tenant = f.Value.String()
	}
	d, err := client.New(cc)
	if err != nil {
		return nil, &statusError{exitUsage, err}
	}
	return d, nil
}

// tenantFlag names whose sandboxes an admin means.
const tenantFlag = "tenant"

func ofTenant(c *cobra.Command) *cobra.Command {
	c.Flags().String(tenantFlag, "", "of this tenant, instead of the key's own; with an admin's key")
	return c
}

// withDaemon runs f with a client, and gives its error the right status.
func withDaemon(c *cobra.Command, f func(context.Context, *client.Driver) error) error {
	d, err := dial(c)
	if err != nil {
		return err
	}
	defer d.Close()
	err = f(c.Context(), d)
	var status *statusError
	switch {
	case err == nil || errors.As(err, &status):
		return err
	case errors.Is(err, isolation.ErrUnavailable):
		var dial *net.OpError
		if errors.As(err, &dial) {
			err = fmt.Errorf("%w; is axo serve running?", err)
		}
		return &statusError{exitEngine, err}
	}
	return &statusError{failureStatus(c.Context(), err), err}
}

func newCreate() *cobra.Command {
	var f requestFlags
	var in api.Create
	var snapshot string
	var metadata []string
	var idle, life time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make a sandbox that stays, at the daemon, and print its id",
		Example: `  id=$(axo create --memory 256M)
  axo exec "$id" -- sh -c 'echo hello > /tmp/f'
  axo rm "$id"`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var r engine.Request
			if err := f.options(c, &r); err != nil {
				return err
			}
			in.Spec, in.Tier, in.Engine, in.MinTier = r.Spec, r.Tier, r.Engine, r.MinTier
			in.Spec.Root.Image = f.image
			in.Spec.Requirement = isolation.Arbitrary // any program
			if f.image != "" {
				in.Spec.Requirement = isolation.ContainerImage
			}
			in.AllowEmulated, in.AllowUnenforced, in.Egress = r.AllowEmulated, r.AllowUnenforced, r.Egress
			in.IdleMS, in.LifeMS = idle.Milliseconds(), life.Milliseconds()
			in.Metadata = map[string]string{}
			for _, m := range metadata {
				k, v, ok := strings.Cut(m, "=")
				if !ok {
					return fmt.Errorf("--metadata %s: want KEY=VALUE", m)
				}
				in.Metadata[k] = v
			}
			if snapshot != "" {
				if err := ownFlags(c, "from-snapshot", "id", "metadata", "idle", "life", "json"); err != nil {
					return err
				}
			}
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				var sb api.Sandbox
				var err error
				if snapshot != "" {
					sb, err = d.Restore(ctx, snapshot, api.Copy{ID: in.ID, Metadata: in.Metadata, IdleMS: in.IdleMS, LifeMS: in.LifeMS})
				} else {
					sb, err = d.Make(ctx, in)
				}
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(c.OutOrStdout(), sb)
				}
				fmt.Fprintln(c.OutOrStdout(), sb.ID)
				return nil
			})
		},
	}
	f.registerSandbox(c.Flags())
	c.Flags().StringVar(&in.ID, "id", "", "its id; made if there is none")
	c.Flags().StringArrayVar(&metadata, "metadata", nil, "KEY=VALUE to find it by; may be repeated")
	c.Flags().DurationVar(&idle, "idle", 0, "delete it when nothing happens in it for so long")
	c.Flags().DurationVar(&life, "life", 0, "delete it after this time in any case")
	c.Flags().BoolVar(&in.Ephemeral, "ephemeral", false, "it may go with the daemon")
	c.Flags().StringVar(&snapshot, "from-snapshot", "", "make it of this snapshot (axo snapshots ls), as it was then")
	c.Flags().BoolVar(&asJSON, "json", false, "print all that is known of it")
	return c
}

// ownFlags refuses flags of a command beside one that leaves no choice to them.
func ownFlags(c *cobra.Command, with string, may ...string) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != with && !slices.Contains(may, f.Name) && c.InheritedFlags().Lookup(f.Name) == nil {
			err = fmt.Errorf("--%s does not go with --%s", f.Name, with)
		}
	})
	return err
}

func newPs() *cobra.Command {
	var asJSON, all bool
	c := &cobra.Command{
		Use: "ps [SANDBOX]", Short: "List the daemon's sandboxes, or the programs of one", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if all {
				if len(args) > 0 || c.Flags().Changed(tenantFlag) {
					return errors.New("--all-tenants goes with no sandbox and no --tenant")
				}
				if err := c.Flags().Set(tenantFlag, "*"); err != nil {
					return err
				}
			}
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				if len(args) == 1 {
					return printProcesses(ctx, c.OutOrStdout(), d, args[0], asJSON)
				}
				list, err := d.Sandboxes(ctx, nil)
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(c.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
				head := "ID\tSTATUS\tTIER\tENGINE\tPROGRAMS\tAGE\tENDS IN"
				if all {
					head = "TENANT\t" + head
				}
				fmt.Fprintln(w, head)
				for _, s := range list {
					if all {
						fmt.Fprintf(w, "%s\t", cmp.Or(s.Tenant, "?"))
					}
					ends := s.Expires
					if s.IdleEnds != nil && s.IdleEnds.Before(ends) {
						ends = *s.IdleEnds
					}
					fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%d\t%v\t%v\n", s.ID, s.Status, s.Decision.Got, s.Decision.Engine, len(s.Execs),
						time.Since(s.Created).Round(time.Second), time.Until(ends).Round(time.Second))
				}
				return w.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&all, "all-tenants", false, "list those of all tenants; with an admin's key")
	return ofTenant(c)
}

func newTenant() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "tenant", Short: "Tenants of the daemon; with an admin's key"}
	ls := &cobra.Command{
		Use: "ls", Short: "List who has a key, a quota, or something at the daemon", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				list, err := d.Tenants(ctx)
				switch {
				case err != nil:
					return err
				case asJSON:
					return printJSON(c.OutOrStdout(), list)
				}
				w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(w, "TENANT\tKEYS\tSANDBOXES\tSNAPSHOTS\tRUNS\tQUOTA")
				for _, t := range list {
					quota := "-"
					if t.Quota != nil {
						quota = "own"
					}
					fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\n", t.Name, t.Keys, t.Sandboxes, t.Snapshots, t.Runs, quota)
				}
				return w.Flush()
			})
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(ls)
	return c
}

func printProcesses(ctx context.Context, out io.Writer, d *client.Driver, id string, asJSON bool) error {
	list, err := d.Processes(ctx, id)
	switch {
	case err != nil:
		return err
	case asJSON:
		return printJSON(out, list)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tSTDOUT\tSTDERR\tCOMMAND")
	for _, p := range list {
		state := "running"
		switch {
		case p.Exit != nil:
			state = p.Exit.String()
		case !p.Running:
			state = "unknown: " + p.Unknown
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", p.ID, printable(state), p.Stdout.To, p.Stderr.To, printable(strings.Join(p.Process.Args, " ")))
	}
	return w.Flush()
}

func newExec() *cobra.Command {
	var p isolation.ProcessSpec
	var interactive, tty, detach bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "exec [flags] SANDBOX -- CMD [ARG...]",
		Short: "Run a program in a sandbox of the daemon's",
		Long:  "Run a program in a sandbox of the daemon's, and pass its input, output and exit\nstatus through.\n\n" + exitHelp,
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			p.Args, p.Limits.Wall = command(args[1:]), timeout
			if len(p.Args) == 0 {
				return errors.New("nothing to run: axo exec SANDBOX -- CMD [ARG...]")
			}
			return execIn(c, args[0], p, interactive, tty, detach)
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringArrayVarP(&p.Env, "env", "e", nil, "environment variable KEY=VALUE; may be repeated")
	f.StringVar(&p.Cwd, "cwd", "", "working directory inside")
	f.StringVar(&p.User, "user", "", "user inside: name or uid[:gid]")
	f.StringVar(&p.ExecID, "id", "", "the program's id; made if there is none")
	f.DurationVar(&timeout, "timeout", 0, "end it after this time")
	f.BoolVarP(&interactive, "interactive", "i", false, "pass stdin on even from a terminal")
	f.BoolVarP(&tty, "tty", "t", false, "give it a terminal")
	f.BoolVarP(&detach, "detach", "d", false, "print its id and leave it running")
	return c
}

// command leaves out the -- between a sandbox and its program.
func command(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func newShell() *cobra.Command {
	var p isolation.ProcessSpec
	c := &cobra.Command{
		Use: "shell SANDBOX [CMD [ARG...]]", Short: "Open a shell in a sandbox of the daemon's", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p.Args = []string{"/bin/sh"}
			if args = command(args[1:]); len(args) > 0 {
				p.Args = args
			}
			return execIn(c, args[0], p, true, true, false)
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&p.User, "user", "", "user inside: name or uid[:gid]")
	return c
}

func execIn(c *cobra.Command, id string, p isolation.ProcessSpec, interactive, tty, detach bool) error {
	return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
		sb, err := d.Open(ctx, id)
		if err != nil {
			return err
		}
		if detach {
			pr, err := sb.Exec(ctx, p, isolation.Stdio{})
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), pr.ID())
			return nil
		}
		// The terminal is connected as run does it.
		r := engine.Request{Process: p, Stdout: os.Stdout, Stderr: os.Stderr}
		r.Process.Terminal = tty
		if interactive || !term.IsTerminal(int(os.Stdin.Fd())) {
			r.Stdin = os.Stdin
		}
		restore, err := terminal(&r)
		if err != nil {
			return err
		}
		defer restore()
		pr, err := sb.Exec(ctx, r.Process, isolation.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr})
		if err != nil {
			return err
		}
		if resizer, ok := isolation.As[isolation.Resizer](pr); ok && r.Resize != nil {
			go func() {
				for size := range r.Resize {
					_ = resizer.Resize(ctx, size) // the next one tells it again
				}
			}()
		}
		exit, err := pr.Wait(ctx)
		if ctx.Err() != nil && err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			_ = pr.Kill(undo, isolation.SIGKILL)
			exit, err = pr.Wait(undo)
		}
		if err != nil {
			return err
		}
		return ended(exit, context.Cause(ctx), true)
	})
}

func newLogs() *cobra.Command {
	var from isolation.Offsets
	c := &cobra.Command{
		Use: "logs [flags] SANDBOX PROGRAM", Short: "Print the output of a program, and what comes until it ends", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				sb, err := d.Open(ctx, args[0])
				if err != nil {
					return err
				}
				a, ok := isolation.As[isolation.Attacher](sb)
				if !ok {
					return errors.New("the client cannot attach")
				}
				p, err := a.Attach(ctx, args[1], from, isolation.Stdio{Stdout: os.Stdout, Stderr: os.Stderr})
				if err != nil {
					return err
				}
				_, err = p.Wait(ctx)
				return err
			})
		},
	}
	c.Flags().Int64Var(&from.Stdout, "stdout", 0, "begin at this byte of stdout")
	c.Flags().Int64Var(&from.Stderr, "stderr", 0, "begin at this byte of stderr")
	return c
}

func newCp() *cobra.Command {
	return &cobra.Command{
		Use:   "cp FROM TO",
		Short: "Copy files into a sandbox of the daemon's, or out of it: SANDBOX:PATH is one there",
		Example: `  axo cp ./data sbx-1:/tmp/data
  axo cp sbx-1:/tmp/out.json .`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			fromBox, fromPath, out := sandboxPath(args[0])
			toBox, toPath, in := sandboxPath(args[1])
			if in == out {
				return errors.New("one of the two is in a sandbox: SANDBOX:/PATH")
			}
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				sb, err := d.Open(ctx, fromBox+toBox)
				if err != nil {
					return err
				}
				if in {
					return engine.CopyIn(ctx, sb, engine.Copy{Host: args[0], Guest: toPath})
				}
				host := args[1]
				if info, err := os.Stat(host); err == nil && info.IsDir() {
					host += "/" + fromPath[strings.LastIndexByte(fromPath, '/')+1:]
				}
				return engine.CopyOut(ctx, sb, engine.Copy{Host: host, Guest: fromPath})
			})
		},
	}
}

// sandboxPath takes SANDBOX:/PATH apart.
func sandboxPath(v string) (sandbox, path string, ok bool) {
	sandbox, path, ok = strings.Cut(v, ":")
	if !ok || isolation.ValidateID(sandbox) != nil || !strings.HasPrefix(path, "/") {
		return "", "", false
	}
	return sandbox, path, true
}

// each is a command on sandboxes, one after another.
func each(use, short string, f func(context.Context, isolation.Sandbox) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " SANDBOX...", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error {
				var errs []error
				for _, id := range args {
					sb, err := d.Open(ctx, id)
					if err == nil {
						err = f(ctx, sb)
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		},
	}
}

func newRm() *cobra.Command {
	return ofTenant(each("rm", "Delete sandboxes of the daemon's, with all that runs in them", func(ctx context.Context, sb isolation.Sandbox) error { return sb.Delete(ctx) }))
}

func pauser(sb isolation.Sandbox) isolation.Pauser {
	p, _ := isolation.As[isolation.Pauser](sb) // the client's has it, and the daemon says if it is not there
	return p
}

func newPause() *cobra.Command {
	return ofTenant(each("pause", "Stop the programs of sandboxes", func(ctx context.Context, sb isolation.Sandbox) error { return pauser(sb).Pause(ctx) }))
}

func newResume() *cobra.Command {
	return ofTenant(each("resume", "Let the programs of paused sandboxes go on", func(ctx context.Context, sb isolation.Sandbox) error { return pauser(sb).Resume(ctx) }))
}

func newKill() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "kill SANDBOX PROGRAM", Short: "Send a signal to a program in a sandbox of the daemon's", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			sig, err := isolation.ParseSignal(name)
			if err != nil {
				return err
			}
			return withDaemon(c, func(ctx context.Context, d *client.Driver) error { return d.Kill(ctx, args[0], args[1], sig) })
		},
	}
	c.Flags().StringVarP(&name, "signal", "s", "KILL", "its name or number")
	return ofTenant(c)
}
