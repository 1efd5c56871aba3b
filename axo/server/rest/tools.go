package rest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/danielgtaylor/huma/v2"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/axo/tool"
)

// maxArtifacts bounds the result files of a call that are sent, in bytes.
const maxArtifacts = 16 << 20

func (s *Server) registerTools() {
	huma.Register(s.api, op("list-tools", "GET", "/v1/tools", "The registered tools", "tools"), s.listTools)
	huma.Register(s.api, op("call-tool", "POST", "/v1/tools/{name}/calls", "Call a tool; that it failed is an answer, too", "tools", func(o *huma.Operation) { o.MaxBodyBytes = 9 << 20 }), s.callTool)
}

// visible reports whether a tool is there for whose request it is.
func (s *Server) visible(ctx context.Context, t tool.Tool) bool {
	return s.config.Allows == nil || s.config.Allows(t.Subject(caller(ctx).Tenant, "rest")) == nil
}

func (s *Server) listTools(ctx context.Context, _ *none) (*body[api.Tools], error) {
	out := api.Tools{Tools: []api.Tool{}}
	if s.config.Tools == nil {
		return &body[api.Tools]{out}, nil
	}
	list, err := s.config.Tools.Registry.List(false)
	if err != nil {
		s.config.Logger.WarnContext(ctx, "tools of the registry", "error", err) // the others are there
	}
	for _, t := range list {
		if !s.visible(ctx, t) {
			continue
		}
		m := t.Manifest
		out.Tools = append(out.Tools, api.Tool{
			Name: m.Name, Version: m.Version, Title: m.Title, Description: m.Description, Digest: t.Digest, Requirement: m.Requirement,
			InputSchema: t.InputSchema(), OutputSchema: t.OutputSchema(), ReadOnly: m.Annotations.ReadOnly, Idempotent: m.Annotations.Idempotent,
		})
	}
	return &body[api.Tools]{out}, nil
}

func (s *Server) callTool(ctx context.Context, in *struct {
	Name string `path:"name" doc:"Of the tool: NAME, or NAME@VERSION"`
	Key  string `header:"Idempotency-Key" maxLength:"256" doc:"Names the call: another one by this key has the same answer, while the daemon lives, for a day"`
	Body api.ToolCall
}) (*body[api.ToolResult], error) {
	if s.config.Draining() {
		return nil, problem(fmt.Errorf("the daemon is about to end; retry later: %w", isolation.ErrUnavailable))
	}
	if s.config.Tools == nil {
		return nil, problem(fmt.Errorf("no tool %.200q: %w", in.Name, isolation.ErrNotFound))
	}
	if t, err := s.config.Tools.Registry.Get(in.Name); err != nil || !s.visible(ctx, t) {
		return nil, problem(cmp.Or(err, fmt.Errorf("no tool %.200q: %w", in.Name, isolation.ErrNotFound)))
	}
	input, err := json.Marshal(in.Body.Input)
	if err != nil {
		return nil, problem(err)
	}
	dir, err := os.MkdirTemp("", "axo-call-")
	if err != nil {
		return nil, problem(err)
	}
	defer os.RemoveAll(dir)
	res, err := s.config.Tools.Call(ctx, tool.Call{Tool: in.Name, Input: input, Key: in.Key, Tenant: caller(ctx).Tenant, Source: "rest", Dir: dir})
	if err != nil {
		return nil, problem(err)
	}
	out := api.ToolResult{Tool: res.Tool, Digest: res.Digest, Output: res.Output, Replayed: res.Replayed, Run: res.Run}
	if f := res.Failure; f != nil {
		out.Failure = &api.ToolFailure{Kind: string(f.Kind), Message: f.Message}
	}
	left := int64(maxArtifacts)
	for _, a := range res.Artifacts {
		x := api.ToolArtifact{Name: a.Name, MediaType: a.MediaType, Bytes: a.Bytes}
		if a.Bytes <= left && !res.Replayed { // the files went with the first answer
			if x.Data, err = os.ReadFile(a.Path); err != nil {
				return nil, problem(err)
			}
			left -= a.Bytes
		}
		out.Artifacts = append(out.Artifacts, x)
	}
	return &body[api.ToolResult]{out}, nil
}
