package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation/axo/tool"
	"github.com/axocoatl/isolation/engine"
)

// Keys of _meta.
const (
	// metaRun has a result's decision, exit and usage.
	metaRun = "axo/run"
	// metaKey is a call's idempotency key.
	metaKey = "axo/idempotency-key"
)

// maxArtifacts bounds the result files that come back in a result, all together.
const maxArtifacts = 8 << 20

// describe tells a tool as the protocol does.
func describe(t tool.Tool) *sdk.Tool {
	m := t.Manifest
	title := m.Title
	out := &sdk.Tool{
		Name: m.Name, Title: title, Description: m.Description, InputSchema: t.InputSchema(),
		Annotations: &sdk.ToolAnnotations{
			Title: title, ReadOnlyHint: m.Annotations.ReadOnly, DestructiveHint: m.Annotations.Destructive,
			IdempotentHint: m.Annotations.Idempotent, OpenWorldHint: m.Annotations.OpenWorld,
		},
		Meta: sdk.Meta{"axo/version": m.Version, "axo/digest": t.Digest},
	}
	// Clients of revisions before 2026-07-28 know structured output that is an object.
	if b := t.OutputSchema(); isObject(b) {
		out.OutputSchema = b
	}
	return out
}

func isObject(schema json.RawMessage) bool {
	var s struct {
		Type any `json:"type"`
	}
	return len(schema) > 0 && json.Unmarshal(schema, &s) == nil && s.Type == "object"
}

// call calls a tool of the registry; one with result files needs a place for them.
func (s *Server) call(name string, files bool) sdk.ToolHandler {
	return func(ctx context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
		dir := ""
		if files {
			var err error
			if dir, err = os.MkdirTemp("", "axo-mcp-"); err != nil {
				return nil, s.told(ctx, "call "+name, err)
			}
			defer os.RemoveAll(dir)
		}
		key, _ := r.Params.Meta[metaKey].(string) // what is no string is no key
		res, err := s.config.Tools.Call(ctx, tool.Call{
			Tool: name, Input: r.Params.Arguments, Key: key, Tenant: s.tenantOf(r), Source: s.config.Source,
			Progress: s.progress(ctx, r), Dir: dir,
		})
		if err != nil {
			return failure(s.told(ctx, "call "+name, err)), nil
		}
		return result(res), nil
	}
}

// failure is a result that says why there is none.
func failure(err error) *sdk.CallToolResult {
	return &sdk.CallToolResult{IsError: true, Content: []sdk.Content{&sdk.TextContent{Text: err.Error()}}}
}

func result(res *tool.Result) *sdk.CallToolResult {
	out := &sdk.CallToolResult{Meta: sdk.Meta{}}
	if res.Run != nil {
		out.Meta[metaRun] = summary(res.Run)
	}
	if f := res.Failure; f != nil {
		out.IsError = true
		text := fmt.Sprintf("%s: %s", f.Kind, f.Message)
		if res.Run != nil {
			if e := strings.TrimSpace(res.Run.Stderr.String()); e != "" {
				text += "\nstderr:\n" + tail(e, 4<<10)
			}
		}
		out.Content = []sdk.Content{&sdk.TextContent{Text: text}}
		return out
	}
	var text string
	if json.Unmarshal(res.Output, &text) != nil {
		text = string(res.Output)
	}
	out.Content = []sdk.Content{&sdk.TextContent{Text: text}}
	if len(res.Output) > 0 && res.Output[0] == '{' {
		out.StructuredContent = res.Output
	}
	var total int64
	for _, a := range res.Artifacts {
		if total += a.Bytes; total > maxArtifacts {
			out.Content = append(out.Content, &sdk.TextContent{Text: fmt.Sprintf("%s has %d bytes, which is too much to be sent", a.Name, a.Bytes)})
			total -= a.Bytes
			continue
		}
		c, err := content(res, a)
		if err != nil {
			return failure(fmt.Errorf("result file %s cannot be read", a.Name))
		}
		out.Content = append(out.Content, c)
	}
	return out
}

// tail is the end of a text.
func tail(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return "..." + strings.ToValidUTF8(s[len(s)-most:], "")
}

// content is a result file.
func content(res *tool.Result, a tool.Artifact) (sdk.Content, error) {
	b, err := os.ReadFile(a.Path)
	if err != nil {
		return nil, err
	}
	kind, _, _ := strings.Cut(a.MediaType, "/")
	switch kind {
	case "image":
		return &sdk.ImageContent{Data: b, MIMEType: a.MediaType}, nil
	case "audio":
		return &sdk.AudioContent{Data: b, MIMEType: a.MediaType}, nil
	}
	r := &sdk.ResourceContents{URI: "axo://" + res.Run.ID + "/" + a.Name, MIMEType: a.MediaType}
	if kind == "text" && utf8.Valid(b) {
		r.Text = string(b)
	} else {
		r.Blob = b
	}
	return &sdk.EmbeddedResource{Resource: r}, nil
}

// summary is what is told of a run beside its output.
func summary(r *engine.Result) map[string]any {
	return map[string]any{"tier": r.Tier, "engine": r.Engine, "decision": r.Decision, "exit": r.Exit, "usage": r.Usage}
}

// Progress is passed on at once if it is seldom, and every pace if it is not: a tool
// may say it all the time.
const (
	pace  = 20 * time.Millisecond
	burst = 32
)

// progress tells a client of a tool's progress, if it wants that; nil: it does not.
func (s *Server) progress(ctx context.Context, r *sdk.CallToolRequest) func(tool.Progress) {
	token := r.Params.GetProgressToken()
	if token == nil {
		return nil
	}
	var mu sync.Mutex
	last, left := time.Now(), burst
	most := -1.0
	return func(p tool.Progress) {
		mu.Lock()
		defer mu.Unlock()
		n := int(time.Since(last) / pace)
		last, left = last.Add(time.Duration(n)*pace), min(burst, left+n)
		// It has to increase, says the protocol, and be no flood.
		if p.Progress <= most || left == 0 && p.Progress != p.Total {
			return
		}
		most, left = p.Progress, max(0, left-1)
		err := r.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: token, Progress: p.Progress, Total: p.Total, Message: p.Message})
		if err != nil {
			s.config.Logger.DebugContext(ctx, "progress", "error", err)
		}
	}
}
