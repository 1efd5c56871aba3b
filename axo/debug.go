package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/server"
)

// profiles are those that Go has.
var profiles = []string{"allocs", "block", "goroutine", "heap", "mutex", "profile", "threadcreate", "trace"}

func newDebug() *cobra.Command {
	c := &cobra.Command{
		Use:   "debug",
		Short: "Look into a daemon that runs: metrics, profiles, readiness",
		Long: `Look into a daemon that runs, by its admin socket, which is its user's alone.
The same can be had with curl:

  curl --unix-socket /var/lib/axo/admin.sock http://axo/metrics
  curl --unix-socket /var/lib/axo/admin.sock -o cpu.pprof 'http://axo/debug/pprof/profile?seconds=10'`,
	}
	config.Register(c.PersistentFlags(), "admin")
	get := func(use, short, path string) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return askAdmin(c, path, c.OutOrStdout()) },
		}
	}
	var seconds int
	var file string
	profile := &cobra.Command{
		Use: "pprof NAME", Short: "Write a profile to a file, for go tool pprof: " + strings.Join(profiles, ", "),
		Long: `Write a profile to a file: profile (of the processor's time), heap, allocs, block,
mutex, goroutine and threadcreate for go tool pprof, trace for go tool trace.`,
		Example: "  axo debug pprof profile --seconds 10 && go tool pprof -top profile.pprof",
		Args:    cobra.ExactArgs(1), ValidArgs: profiles,
		RunE: func(c *cobra.Command, args []string) (err error) {
			if !slices.Contains(profiles, args[0]) {
				return fmt.Errorf("there is no profile %q: want one of %s", args[0], strings.Join(profiles, ", "))
			}
			if seconds < 0 {
				return fmt.Errorf("--seconds %d: want 0 or more", seconds)
			}
			path := "/debug/pprof/" + args[0]
			if seconds > 0 {
				path += "?seconds=" + strconv.Itoa(seconds)
			}
			name := cmp.Or(file, args[0]+".pprof")
			if name == "-" {
				return askAdmin(c, path, c.OutOrStdout())
			}
			f, err := os.CreateTemp(filepath.Dir(name), ".pprof-") // 0600
			if err != nil {
				return &statusError{exitEngine, err}
			}
			defer func() {
				if err != nil {
					_ = os.Remove(f.Name()) // it is half a profile
				}
			}()
			if err := askAdmin(c, path, f); err != nil {
				f.Close()
				return err
			}
			if err := f.Close(); err != nil {
				return &statusError{exitEngine, err}
			}
			if err := os.Rename(f.Name(), name); err != nil {
				return &statusError{exitEngine, err}
			}
			fmt.Fprintln(c.ErrOrStderr(), "written:", name)
			return nil
		},
	}
	profile.Flags().IntVar(&seconds, "seconds", 0, "what happens in this time, alone; of profile and trace 30 and 1 if it is not there")
	profile.Flags().StringVarP(&file, "output", "o", "", "the file (default NAME.pprof; - is stdout)")
	c.AddCommand(
		get("metrics", "Print what is measured, as Prometheus reads it", "/metrics"),
		get("ready", "Does it take requests? Exits with another status than 0 if not", "/ready"),
		get("goroutines", "Print what every goroutine does, for a daemon that hangs", "/debug/pprof/goroutine?debug=2"),
		profile,
	)
	return c
}

// askAdmin copies what the daemon's admin socket answers.
func askAdmin(c *cobra.Command, path string, to io.Writer) error {
	l, err := settings(c)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(l.StateDir)
	if err != nil {
		return err
	}
	socket := cmp.Or(l.Admin.Socket, server.AdminSocketPath(dir))
	if socket == server.NoAdminSocket {
		return &statusError{exitEngine, fmt.Errorf("the daemon has no admin socket: admin.socket is %s: %w", server.NoAdminSocket, isolation.ErrFailedPrecondition)}
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: 10 * time.Second}
		return d.DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(c.Context(), http.MethodGet, "http://axo"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return &statusError{exitEngine, fmt.Errorf("ask the daemon: %w", err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // the status says enough
		return &statusError{exitEngine, fmt.Errorf("the daemon answers %s: %s", resp.Status, strings.TrimSpace(string(b)))}
	}
	if _, err := io.Copy(to, resp.Body); err != nil {
		return &statusError{exitEngine, fmt.Errorf("read the daemon's answer: %w", err)}
	}
	return nil
}
