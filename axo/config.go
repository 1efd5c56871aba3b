package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/engine"
)

// settings reads what is set: by the file, the environment and a command's flags.
func settings(c *cobra.Command) (*config.Loaded, error) {
	file, _ := c.Flags().GetString("config") // there is such a flag
	l, err := config.Load(config.Source{File: file, Env: os.Environ(), Flags: c.Flags()})
	if err == nil {
		err = check(l.Config)
	}
	if err != nil {
		return nil, &statusError{exitUsage, err}
	}
	return l, nil
}

// check is for what settings say that config does not know about.
func check(c config.Config) error {
	errs := []error{server.CheckListen(c.Serve.Listen), server.CheckListen(c.Serve.E2B), server.CheckMetricsListen(c.Metrics.Listen, c.Metrics.Remote),
		telemetry.CheckEndpoint(c.Trace.Endpoint)}
	rules := func(setting string, list []string) {
		if err := (engine.Policy{Egress: list}).Validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", setting, err))
		}
	}
	rules("serve.allow_egress", c.Serve.AllowEgress)
	rules("build.allow_hosts", c.Build.AllowHosts)
	names := func(setting string, list []string) {
		for _, n := range list {
			if n == "" || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }) {
				errs = append(errs, fmt.Errorf("%s: %.80q is no name of a host", setting, n))
			}
		}
	}
	names("serve.hosts", c.Serve.Hosts)
	names("build.registries", c.Build.Registries)
	if c.Serve.E2BDomain != "" {
		names("serve.e2b_domain", []string{c.Serve.E2BDomain})
	}
	switch {
	case c.Serve.E2BTLS != "" && c.Serve.E2BTLS != "self":
		errs = append(errs, fmt.Errorf("serve.e2b_tls is %.40q: want self, or nothing", c.Serve.E2BTLS))
	case c.Serve.E2BTLS != "" && c.Serve.E2BTLSCert != "":
		errs = append(errs, errors.New("serve.e2b_tls and serve.e2b_tls_cert are two certificates: want one"))
	case (c.Serve.E2BTLSCert == "") != (c.Serve.E2BTLSKey == ""):
		errs = append(errs, errors.New("serve.e2b_tls_cert and serve.e2b_tls_key want each other"))
	case c.Serve.E2B == "" && c.Serve.E2BTLS+c.Serve.E2BTLSCert != "":
		errs = append(errs, errors.New("serve.e2b_tls says how serve.e2b is answered, and that is not set"))
	}
	return errors.Join(errs...)
}

func newConfig() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "What is set, and by what"}
	var asJSON, origin bool
	// What serve has flags for can be tried out here.
	flags := func(c *cobra.Command) *cobra.Command {
		config.Register(c.Flags(), "serve", "session", "tenant", "admission", "admin", "metrics", "log")
		return c
	}
	show := flags(&cobra.Command{
		Use: "show", Short: "Print every setting as it holds; secrets are not told", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := settings(c)
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(c.OutOrStdout(), l.Values())
			}
			return l.WriteTOML(c.OutOrStdout(), origin)
		},
	})
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON: key, value and origin of each")
	show.Flags().BoolVar(&origin, "origin", false, "tell where each is from")
	check := flags(&cobra.Command{
		Use: "check", Short: "Read all settings, and start nothing", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := settings(c)
			if err != nil {
				return err
			}
			for _, name := range config.Strays(os.Environ()) {
				fmt.Fprintf(c.ErrOrStderr(), "axo: %s is in the environment and is no setting\n", name)
			}
			file := l.File
			if file == "" {
				file = "there is no file; the rest"
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: good\n", file)
			return nil
		},
	})
	example := &cobra.Command{
		Use: "example", Short: "Print a file with every setting as a comment", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), config.Example())
			return err
		},
	}
	c.AddCommand(show, check, example)
	return c
}
