package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation"
)

// mcpClient is a client, and where it keeps its servers.
type mcpClient struct {
	what  string
	key   string // of the object with the servers
	typed bool   // a server says its type
	toml  bool   // the file is TOML, not JSON
	path  func(home string) string
}

// mcpClients are those whose configuration is a file that their makers document.
var mcpClients = map[string]mcpClient{
	"claude-desktop": {"Claude Desktop", "mcpServers", false, false, func(home string) string {
		if runtime.GOOS == "darwin" {
			return filepath.Join(home, "Library", "Application Support", "Claude", "claude_desktop_config.json")
		}
		return filepath.Join(home, ".config", "Claude", "claude_desktop_config.json")
	}},
	"claude-code": {"Claude Code, this project", "mcpServers", false, false, func(string) string { return ".mcp.json" }},
	"codex":       {"Codex CLI", "mcp_servers", false, true, func(home string) string { return filepath.Join(home, ".codex", "config.toml") }},
	"zed":         {"Zed", "context_servers", false, false, func(home string) string { return filepath.Join(home, ".config", "zed", "settings.json") }},
	"cursor":      {"Cursor", "mcpServers", false, false, func(home string) string { return filepath.Join(home, ".cursor", "mcp.json") }},
	"vscode":      {"VS Code, this workspace", "servers", true, false, func(string) string { return filepath.Join(".vscode", "mcp.json") }},
	"windsurf":    {"Windsurf", "mcpServers", false, false, func(home string) string { return filepath.Join(home, ".codeium", "windsurf", "mcp_config.json") }},
	"gemini":      {"Gemini CLI", "mcpServers", false, false, func(home string) string { return filepath.Join(home, ".gemini", "settings.json") }},
}

func newMCPInstall() *cobra.Command {
	var client, name string
	var write bool
	names := slices.Sorted(maps.Keys(mcpClients))
	c := &cobra.Command{
		Use:   "install [flags] [-- ARG...]",
		Short: "Print what MCP clients are told of axo, or write it",
		Long: `Print the configuration by which MCP clients start axo mcp serve, with the arguments
that follow. With --write it is put into the client's file, beside what is there; the
file as it was is kept with the ending .bak.`,
		Example: `  axo mcp install
  axo mcp install --client cursor --write -- --tools-only`,
		RunE: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); len(args) > 0 && at != 0 {
				return fmt.Errorf("%.40q: what axo mcp serve is started with comes after --; a client is named with --client", args[0])
			}
			home, err := os.UserHomeDir()
			if err != nil {
				return &statusError{exitEngine, err}
			}
			self, err := os.Executable()
			if err != nil {
				return &statusError{exitEngine, err}
			}
			if write && client == "" {
				return errors.New("--write goes with --client")
			}
			if client != "" {
				if _, ok := mcpClients[client]; !ok {
					return fmt.Errorf("--client %s: want one of %s", client, strings.Join(names, ", "))
				}
				names = []string{client}
			}
			for _, n := range names {
				m := mcpClients[n]
				server := map[string]any{"command": self, "args": append([]string{"mcp", "serve"}, args...)}
				if m.typed {
					server["type"] = "stdio"
				}
				if !write {
					fmt.Fprintf(c.OutOrStdout(), "# %s: %s\n", m.what, m.path(home))
					if m.toml {
						b, err := toml.Marshal(map[string]any{m.key: map[string]any{name: server}})
						if err != nil {
							return err
						}
						fmt.Fprintf(c.OutOrStdout(), "%s\n", b)
						continue
					}
					if err := printJSON(c.OutOrStdout(), map[string]any{m.key: map[string]any{name: server}}); err != nil {
						return err
					}
					continue
				}
				put := install
				if m.toml {
					put = installTOML
				}
				if err := put(m.path(home), m.key, name, server); err != nil {
					return failed(c, err, false)
				}
				fmt.Fprintln(c.OutOrStdout(), "written:", m.path(home))
			}
			return nil
		},
	}
	c.Flags().StringVar(&client, "client", "", strings.Join(names, ", ")+" (default: print all)")
	c.Flags().StringVar(&name, "name", "axo", "what the client calls the server")
	c.Flags().BoolVar(&write, "write", false, "write the client's file")
	return c
}

// install puts a server into a client's file. A file that is not plain JSON, or of
// another form, is left alone.
func install(file, key, name string, server any) error {
	b, err := os.ReadFile(file)
	there := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	doc, servers := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if len(bytes.TrimSpace(b)) > 0 {
		if err := json.Unmarshal(b, &doc); err != nil {
			return fmt.Errorf("%s is not plain JSON (%w): put it there yourself: %w", file, err, isolation.ErrFailedPrecondition)
		}
	}
	if old, ok := doc[key]; ok {
		if err := json.Unmarshal(old, &servers); err != nil {
			return fmt.Errorf("%s: %s is no object: %w", file, key, isolation.ErrFailedPrecondition)
		}
	}
	if servers[name], err = json.Marshal(server); err != nil {
		return err
	}
	if doc[key], err = json.Marshal(servers); err != nil {
		return err
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return rewrite(file, b, there, append(out, '\n'))
}

// installTOML puts a server at the end of a client's file, so that what is there stays
// as it is, with its comments. One of that name that says something else is left alone.
func installTOML(file, key, name string, server any) error {
	b, err := os.ReadFile(file)
	there := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	add, err := toml.Marshal(map[string]any{key: map[string]any{name: server}})
	if err != nil {
		return err
	}
	var old, more, all map[string]any
	if err := errors.Join(toml.Unmarshal(b, &old), toml.Unmarshal(add, &more)); err != nil {
		return fmt.Errorf("%s is not TOML (%w): put it there yourself: %w", file, err, isolation.ErrFailedPrecondition)
	}
	if have, ok := old[key].(map[string]any); ok && have[name] != nil {
		if reflect.DeepEqual(have[name], more[key].(map[string]any)[name]) {
			return nil
		}
		return fmt.Errorf("%s: %s.%s is there, and is something else: take it out first: %w", file, key, name, isolation.ErrAlreadyExists)
	}
	out := bytes.Clone(b)
	if len(out) > 0 {
		out = append(bytes.TrimRight(out, "\n"), "\n\n"...)
	}
	out = append(out, add...)
	if err := toml.Unmarshal(out, &all); err != nil {
		return fmt.Errorf("%s: %s cannot be added to: put it there yourself: %w", file, key, isolation.ErrFailedPrecondition)
	}
	return rewrite(file, b, there, out)
}

// rewrite puts a file in the place of an old one, which is kept.
func rewrite(file string, old []byte, there bool, out []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if there {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		mode = info.Mode().Perm()
		if err := os.WriteFile(file+".bak", old, mode); err != nil {
			return err
		}
	}
	temp := file + ".axo"
	if err := os.WriteFile(temp, out, mode); err != nil {
		return err
	}
	return os.Rename(temp, file)
}
