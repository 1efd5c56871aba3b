package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/server/mcp"
)

func newMCPWrap() *cobra.Command {
	var f requestFlags
	c := &cobra.Command{
		Use:   "wrap [flags] (-- CMD | FILE.wasm | --python CODE | --image REF) [ARG...]",
		Short: "Run an MCP server in a sandbox, in its place",
		Long: `Run an MCP server that speaks on stdin and stdout in a sandbox, and pass on what it
and its client say. In a client's configuration axo mcp wrap -- CMD stands where CMD
was. The server sees no files and no environment of yours but what flags give it, and
of the network nothing but the hosts of --allow-host. What it writes to stdout and is no
message goes to stderr.

` + fmt.Sprintf(requestUsage, "mcp wrap"),
		Example: `  axo mcp wrap --dir ./notes:/notes:ro -- mcp-server-files /notes
  axo mcp wrap --allow-host registry.npmjs.org -- npx -y some-server
  axo mcp wrap --image ghcr.io/o/server:1`,
		RunE: func(c *cobra.Command, args []string) error {
			r, err := f.request(c, args)
			if err != nil {
				return misused(c, err, false)
			}
			if f.tty {
				return misused(c, fmt.Errorf("a server of MCP has no terminal"), false)
			}
			e, err := openEngine(c)
			if err != nil {
				return failed(c, err, false)
			}
			defer e.Close()
			r.Source = "wrap"
			r.Stdin, r.Stderr = os.Stdin, os.Stderr
			r.Stdout = &mcp.Lines{Out: os.Stdout, Other: os.Stderr}
			res, err := e.Run(c.Context(), r)
			if err != nil {
				return failed(c, err, false)
			}
			printRefused(os.Stderr, res.Egress)
			return ended(res.Exit, context.Cause(c.Context()), true)
		},
	}
	f.register(c.Flags())
	return c
}
