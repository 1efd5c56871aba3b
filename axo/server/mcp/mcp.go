// Package mcp serves the tools of a registry, runs of code and sandboxes by the Model
// Context Protocol, on stdio or over HTTP. Each call is isolated: it goes through the
// engine as any other run does.
//
// That a tool failed is a result, with isError, so that the model sees why. An error of
// the protocol is that there is no such tool, or that a request has no sense.
package mcp

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/engine"
)

// Engine runs programs in sandboxes of their own; *engine.Engine is one.
type Engine interface {
	Run(context.Context, engine.Request) (*engine.Result, error)
	Explain(context.Context, engine.Request) (engine.Decision, error)
}

// Config makes a Server.
type Config struct {
	Engine   Engine
	Tools    *tool.Caller     // of a registry
	Sessions *session.Manager // sandboxes that stay; nil: there are none to be had
	// ToolsOnly leaves out what runs code that the caller brings: run_python and so on,
	// and sandboxes.
	ToolsOnly bool
	// Allows says what a policy refuses, by itself: such a tool is not there for that
	// tenant. *engine.Engine has it. nil: every one is there.
	Allows func(engine.Request) error
	// Ephemeral has sandboxes go with this process.
	Ephemeral bool
	// Tenant is whose calls those on stdio are.
	Tenant string
	// Source is by which way calls come, for a policy; empty: "mcp".
	Source  string
	Version string
	Logger  *slog.Logger
	// OnRequest is told of each request that is over: its method, and which tool it
	// called; "registered" is one of the registry. nil: nobody is told.
	OnRequest func(method, tool string, failed bool)
}

// Server speaks MCP. Close it.
type Server struct {
	config Config
	sdk    *sdk.Server
	own    map[string]bool // names of the tools that are not of the registry

	mu       sync.Mutex
	tools    map[string]string     // name -> digest, of the registry's; guarded by mu
	sessions map[string]remembered // those over HTTP, by id; guarded by mu
}

// look is how often the registry is looked at for changes.
const look = time.Second

const instructions = `Tools here run isolated: in a WebAssembly sandbox, a container or a virtual machine. What a run leaves is gone
afterwards, and there is no network. To keep state between calls, make a sandbox (create_sandbox) and give its sandbox_id to exec,
read_file, write_file and list_files; delete it when it is no longer needed.`

// New makes a server, with the tools that are in the registry.
func New(c Config) (*Server, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Source == "" {
		c.Source = "mcp"
	}
	s := &Server{config: c, own: map[string]bool{}, tools: map[string]string{}, sessions: map[string]remembered{}}
	o := &sdk.ServerOptions{Capabilities: &sdk.ServerCapabilities{Tools: &sdk.ToolCapabilities{ListChanged: true}}}
	if !c.ToolsOnly {
		o.Instructions = instructions
	}
	s.sdk = sdk.NewServer(&sdk.Implementation{Name: "axo", Title: "Axocoatl Isolation", Version: c.Version}, o)
	s.sdk.AddReceivingMiddleware(s.see)
	if c.OnRequest != nil {
		s.sdk.AddReceivingMiddleware(s.observed)
	}
	if !c.ToolsOnly {
		s.addRuns()
		if c.Sessions != nil {
			s.addSandboxes()
		}
	}
	return s, s.refresh()
}

// Serve speaks on one connection until it ends, or ctx does.
func (s *Server) Serve(ctx context.Context, t sdk.Transport) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.Watch(ctx) })
	err := s.sdk.Run(ctx, t)
	cancel()
	wg.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// ServeStdio speaks on this process's stdin and stdout.
func (s *Server) ServeStdio(ctx context.Context) error {
	return s.Serve(ctx, &sdk.StdioTransport{})
}

// Watch tells clients of changes in the registry until ctx ends.
func (s *Server) Watch(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.config.Tools == nil || !s.config.Tools.Registry.Changed() {
				continue
			}
			if err := s.refresh(); err != nil {
				s.config.Logger.Warn("tools of the registry", "error", err)
			}
		}
	}
}

// tenantOf is whose call it is.
func (s *Server) tenantOf(r *sdk.CallToolRequest) string {
	if r.Extra != nil && r.Extra.TokenInfo != nil {
		return r.Extra.TokenInfo.UserID
	}
	return s.config.Tenant
}

// refresh makes the server's tools those of the registry.
func (s *Server) refresh() error {
	if s.config.Tools == nil {
		return nil
	}
	list, err := s.config.Tools.Registry.List(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := map[string]bool{}
	for name := range s.tools {
		gone[name] = true
	}
	for _, t := range list {
		name := t.Manifest.Name
		if s.own[name] {
			s.config.Logger.Warn("a tool of the registry has the name of one that is built in, and is not served", "tool", t.Ref())
			continue
		}
		delete(gone, name)
		if s.tools[name] == t.Digest {
			continue
		}
		s.sdk.AddTool(describe(t), s.call(name, len(t.Manifest.Files.Out) > 0))
		s.tools[name] = t.Digest
	}
	var names []string
	for name := range gone {
		names = append(names, name)
		delete(s.tools, name)
	}
	if slices.Sort(names); len(names) > 0 {
		s.sdk.RemoveTools(names...)
	}
	return err
}

// told is an error as a model may see it. What is no class of the contract's may tell
// of this host, and is only logged.
func (s *Server) told(ctx context.Context, what string, err error) error {
	if isolation.Class(err) != nil {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	s.config.Logger.ErrorContext(ctx, what, "error", err)
	return errors.New(what + ": the engine could not do its work; its log tells more")
}
