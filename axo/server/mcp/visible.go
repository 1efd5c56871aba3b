package mcp

import (
	"context"
	"fmt"
	"slices"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// needs is what a policy has to allow for a tool that is built in to be there.
var needs = map[string]isolation.Requirement{"run_python": isolation.Python, "run_shell": isolation.Shell, "run_wasm": isolation.WasmCompiled, "create_sandbox": isolation.Arbitrary}

// visible reports whether a tool is there for a tenant: one that the policy refuses
// whatever its input is not.
func (s *Server) visible(name, who string) bool {
	if s.config.Allows == nil {
		return true
	}
	if s.own[name] {
		what, ok := needs[name]
		return !ok || s.config.Allows(engine.Request{Source: s.config.Source, Spec: isolation.Spec{Requirement: what, Tenant: who}}) == nil
	}
	if s.config.Tools == nil {
		return true
	}
	t, err := s.config.Tools.Registry.Get(name)
	return err != nil || s.config.Allows(t.Subject(who, s.config.Source)) == nil // what cannot be read the call says
}

// see leaves out of lists and calls what is not there for whose request it is.
func (s *Server) see(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, r sdk.Request) (sdk.Result, error) {
		who := s.config.Tenant
		if x := r.GetExtra(); x != nil && x.TokenInfo != nil {
			who = x.TokenInfo.UserID
		}
		if p, ok := r.GetParams().(*sdk.CallToolParamsRaw); ok && !s.visible(p.Name, who) {
			return nil, &jsonrpc.Error{Code: jsonrpc.CodeInvalidParams, Message: fmt.Sprintf("unknown tool %q", p.Name)}
		}
		res, err := next(ctx, method, r)
		if list, ok := res.(*sdk.ListToolsResult); ok && err == nil && list != nil {
			seen := *list
			seen.Tools = slices.DeleteFunc(slices.Clone(list.Tools), func(t *sdk.Tool) bool { return !s.visible(t.Name, who) })
			return &seen, nil
		}
		return res, err
	}
}
