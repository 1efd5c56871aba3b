package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/server/mcp"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
)

func newMCP() *cobra.Command {
	c := &cobra.Command{
		Use:   "mcp",
		Short: "Give MCP clients isolated tools",
	}
	c.AddCommand(newMCPServe(), newMCPWrap(), newMCPInstall())
	return c
}

func newMCPServe() *cobra.Command {
	var toolsOnly bool
	var warm int
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve MCP on stdin and stdout",
		Long: `Serve the Model Context Protocol on stdin and stdout: the registered tools (axo tool
ls), run_python, run_shell, run_wasm, sandboxes, and explain. Each call is isolated.
Sandboxes go when it ends. axo serve does the same over HTTP, at /mcp.`,
		Example: `  axo mcp serve --tools-only
  npx @modelcontextprotocol/inspector --cli axo mcp serve --method tools/list`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			reg, err := openTools(c)
			if err != nil {
				return err
			}
			e, err := openEngine(c, func(a *all.Config, _ *engine.Config) { a.Warm = warm })
			if err != nil {
				return err
			}
			logger := slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
			config := mcp.Config{Engine: e, Tools: &tool.Caller{Registry: reg, Engine: e}, ToolsOnly: toolsOnly, Ephemeral: true, Allows: e.Allows, Version: version, Logger: logger}
			end := e.Close
			if !toolsOnly {
				// The records of sandboxes that go with this process are of no use to another.
				dir, err := os.MkdirTemp("", "axo-mcp-")
				if err != nil {
					return errors.Join(err, e.Close())
				}
				defer os.RemoveAll(dir)
				sessions, err := session.Open(c.Context(), session.Config{Engine: e, Dir: dir, Logger: logger})
				if err != nil {
					return errors.Join(err, e.Close())
				}
				config.Sessions = sessions
				end = func() error {
					ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), time.Minute)
					defer cancel()
					return sessions.Close(ctx)
				}
			}
			defer func() {
				if cerr := end(); cerr != nil && err == nil {
					err = &statusError{exitEngine, cerr}
				}
			}()
			s, err := mcp.New(config)
			if err != nil {
				// The tools that can be read are served.
				fmt.Fprintln(c.ErrOrStderr(), "axo:", errorText(err))
			}
			if err := s.ServeStdio(c.Context()); err != nil {
				return &statusError{exitEngine, err}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&toolsOnly, "tools-only", false, "serve registered tools alone: no code of the caller's, no sandboxes")
	c.Flags().IntVar(&warm, "warm", 1, "how many containers to keep ready of each kind that was asked for lately; 0: none")
	return c
}
