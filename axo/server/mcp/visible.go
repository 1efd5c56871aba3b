package mcp

import (
	"context"
	"fmt"
	"slices"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/asked"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/engine"
)

// needs is what a policy has to allow for a tool that is built in to be there.
var needs = map[string]isolation.Requirement{"run_python": isolation.Python, "run_shell": isolation.Shell, "run_wasm": isolation.WasmCompiled, "create_sandbox": isolation.Arbitrary}

// looks are the tools that are there for who only looks: they run and change nothing.
var looks = map[string]bool{"explain": true, "list_sandboxes": true, "read_file": true, "list_files": true}

// visible reports whether a tool is there for a tenant: one that the policy refuses
// whatever its input is not.
func (s *Server) visible(name, who string, find func(name string) (tool.Tool, bool)) bool {
	if s.config.Allows == nil {
		return true
	}
	if s.own[name] {
		what, ok := needs[name]
		return !ok || s.config.Allows(engine.Request{Source: s.config.Source, Spec: isolation.Spec{Requirement: what, Tenant: who}}) == nil
	}
	t, ok := find(name)
	return !ok || s.config.Allows(t.Subject(who, s.config.Source)) == nil // what cannot be read the call says
}

// tool finds one in the registry.
func (s *Server) tool(name string) (tool.Tool, bool) {
	if s.config.Tools == nil {
		return tool.Tool{}, false
	}
	t, err := s.config.Tools.Registry.Get(name)
	return t, err == nil
}

// all finds in a list that is made once.
func (s *Server) all() func(name string) (tool.Tool, bool) {
	byName := map[string]tool.Tool{}
	if s.config.Tools != nil {
		list, _ := s.config.Tools.Registry.List(false) // those that can be read
		for _, t := range list {
			byName[t.Manifest.Name] = t
		}
	}
	return func(name string) (tool.Tool, bool) { t, ok := byName[name]; return t, ok }
}

// see leaves out of lists and calls what is not there for whose request it is.
func (s *Server) see(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, r sdk.Request) (sdk.Result, error) {
		who, role := s.config.Tenant, tenant.RoleUser // on stdio it is who has started this
		if x := r.GetExtra(); x != nil && x.TokenInfo != nil {
			who = x.TokenInfo.UserID
			role, _ = x.TokenInfo.Extra[roleExtra].(tenant.Role)
			if key, ok := x.TokenInfo.Extra[keyExtra].(string); ok {
				ctx = asked.By(ctx, key)
			}
		}
		runs := role.May(tenant.RoleUser)
		if p, ok := r.GetParams().(*sdk.CallToolParamsRaw); ok && !(runs || s.own[p.Name] && looks[p.Name]) {
			return nil, &jsonrpc.Error{Code: jsonrpc.CodeInvalidParams, Message: fmt.Sprintf("tool %q takes a key of the role %s; this one has %s", p.Name, tenant.RoleUser, role)}
		} else if ok && !s.visible(p.Name, who, s.tool) {
			return nil, &jsonrpc.Error{Code: jsonrpc.CodeInvalidParams, Message: fmt.Sprintf("unknown tool %q", p.Name)}
		}
		res, err := next(ctx, method, r)
		if list, ok := res.(*sdk.ListToolsResult); ok && (s.config.Allows != nil || !runs) && err == nil && list != nil {
			seen, find := *list, s.all()
			seen.Tools = slices.DeleteFunc(slices.Clone(list.Tools), func(t *sdk.Tool) bool {
				return !(runs || s.own[t.Name] && looks[t.Name]) || !s.visible(t.Name, who, find)
			})
			return &seen, nil
		}
		return res, err
	}
}
