package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/server/mcp"
	"github.com/axocoatl/isolation/engine"
)

func newMCPWrap() *cobra.Command {
	var f requestFlags
	var granted bool
	c := &cobra.Command{
		Use:   "wrap [flags] (-- CMD | FILE.wasm | --python CODE | --image REF) [ARG...]",
		Short: "Run an MCP server in a sandbox, in its place",
		Long: `Run an MCP server that speaks on stdin and stdout in a sandbox, and pass on what it
and its client say. In a client's configuration axo mcp wrap -- CMD stands where CMD
was. The server sees no files and no environment of yours but what flags give it, and
of the network nothing but the hosts of --allow-host. What it writes to stdout and is no
message goes to stderr.

Package runners such as npx and uvx fetch a server through the hosts that are allowed:
for npx registry.npmjs.org, for uvx pypi.org and files.pythonhosted.org. What they
fetch is gone afterwards. A server that is there already, in a directory, an image or a
module, needs no network.

` + fmt.Sprintf(requestUsage, "mcp wrap"),
		Example: `  axo mcp wrap --dir ./notes:/notes:ro -- mcp-server-files /notes
  axo mcp wrap --allow-host registry.npmjs.org -- npx -y some-server
  axo mcp wrap --allow-host pypi.org --allow-host files.pythonhosted.org --dir ~/.local/bin:/uv:ro -- /uv/uvx some-server
  axo mcp wrap --dir ./node_modules:/srv/node_modules:ro -- node /srv/node_modules/some-server/index.js
  axo mcp wrap --tier microvm --allow-emulated --dir ./srv:/srv/mcp:ro -- python3 /srv/mcp/server.py
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
			if granted {
				l, err := settings(c)
				if err != nil {
					return err
				}
				if l.Engine.Policy == "" {
					return misused(c, fmt.Errorf("--allow-granted goes with a policy"), false)
				}
				r.Egress.Granted = true
			}
			r.Source = "wrap"
			addPath(&r)
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
	c.Flags().BoolVar(&granted, "allow-granted", false, "let it reach every host that its policy's rule has in hosts")
	return c
}

// addPath gives a program on the host's system directories a PATH, if it has none:
// package runners pass theirs on, with directories of their own in front, to programs
// that look for an interpreter. Images have one.
func addPath(r *engine.Request) {
	root := r.Spec.Root
	if r.Spec.Requirement == isolation.WasmCompiled || root.Image != "" || root.Path != "" || root.Template != "" {
		return
	}
	if !slices.ContainsFunc(r.Process.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		r.Process.Env = append(r.Process.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
}
