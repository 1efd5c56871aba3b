package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/server"
)

// settings reads what is set: by the file, the environment and a command's flags.
func settings(c *cobra.Command) (*config.Loaded, error) {
	file, _ := c.Flags().GetString("config") // there is such a flag
	l, err := config.Load(config.Source{File: file, Env: os.Environ(), Flags: c.Flags()})
	if err == nil {
		err = errors.Join(server.CheckListen(l.Serve.Listen), server.CheckMetricsListen(l.Metrics.Listen, l.Metrics.Remote))
	}
	if err == nil {
		switch s := l.Serve; {
		case s.E2BTLS != "" && s.E2BTLS != "self":
			err = fmt.Errorf("serve.e2b_tls is %.40q: want self, or nothing", s.E2BTLS)
		case s.E2BTLS != "" && s.E2BTLSCert != "":
			err = errors.New("serve.e2b_tls and serve.e2b_tls_cert are two certificates: want one")
		case (s.E2BTLSCert == "") != (s.E2BTLSKey == ""):
			err = errors.New("serve.e2b_tls_cert and serve.e2b_tls_key want each other")
		case s.E2B == "" && s.E2BTLS+s.E2BTLSCert != "":
			err = errors.New("serve.e2b_tls says how serve.e2b is answered, and that is not set")
		}
	}
	if err != nil {
		return nil, &statusError{exitUsage, err}
	}
	return l, nil
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
