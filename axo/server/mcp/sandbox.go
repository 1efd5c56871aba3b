package mcp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/engine"
)

type createInput struct {
	Image       string `json:"image,omitempty" jsonschema:"an image that this host has; without one it has the host's programs"`
	MemoryMB    int64  `json:"memory_mb,omitempty" jsonschema:"memory that it may use, in MiB"`
	MinTier     string `json:"min_tier,omitempty" jsonschema:"oci (container) or microvm"`
	IdleSeconds int64  `json:"idle_seconds,omitempty" jsonschema:"delete it when nothing has happened in it for so long; 900 if not given"`
}

type sandboxInput struct {
	ID string `json:"sandbox_id" jsonschema:"as create_sandbox returned it"`
}

type execInput struct {
	ID        string `json:"sandbox_id" jsonschema:"as create_sandbox returned it"`
	Command   string `json:"command" jsonschema:"a command for sh"`
	Cwd       string `json:"cwd,omitempty" jsonschema:"working directory; /tmp if not given"`
	Stdin     string `json:"stdin,omitempty"`
	TimeoutMS int64  `json:"timeout_ms,omitempty" jsonschema:"end it after this time; 60000 if not given"`
}

type pathInput struct {
	ID   string `json:"sandbox_id" jsonschema:"as create_sandbox returned it"`
	Path string `json:"path" jsonschema:"an absolute path in the sandbox"`
}

type writeInput struct {
	ID     string `json:"sandbox_id" jsonschema:"as create_sandbox returned it"`
	Path   string `json:"path" jsonschema:"an absolute path in the sandbox"`
	Text   string `json:"text,omitempty"`
	Base64 string `json:"base64,omitempty" jsonschema:"the content, if it is no text"`
}

// Bounds of what is sent of a sandbox's files.
const (
	maxFile    = 4 << 20
	maxEntries = 2000
)

// maxOwned bounds a tenant's sandboxes where there is no quota.
const maxOwned = 64

func (s *Server) addSandboxes() {
	yes, no := true, false
	add(s, &sdk.Tool{Name: "create_sandbox", Title: "Create a sandbox", Annotations: &sdk.ToolAnnotations{DestructiveHint: &no, OpenWorldHint: &no},
		Description: "Make a sandbox that keeps its files and programs between calls, without a network. Returns its sandbox_id. Delete it when it is no longer needed."}, s.create)
	add(s, &sdk.Tool{Name: "list_sandboxes", Title: "List sandboxes", Annotations: &sdk.ToolAnnotations{ReadOnlyHint: true, DestructiveHint: &no, IdempotentHint: yes, OpenWorldHint: &no},
		Description: "List the sandboxes that there are."},
		func(_ context.Context, r *sdk.CallToolRequest, _ struct{}) (*sdk.CallToolResult, error) {
			list := []map[string]any{}
			for _, x := range s.config.Sessions.List(s.tenantOf(r), nil) {
				list = append(list, describeSession(x))
			}
			return structured(map[string]any{"sandboxes": list}), nil
		})
	add(s, &sdk.Tool{Name: "delete_sandbox", Title: "Delete a sandbox", Annotations: &sdk.ToolAnnotations{DestructiveHint: &yes, IdempotentHint: yes, OpenWorldHint: &no},
		Description: "Delete a sandbox with all that is in it."},
		func(ctx context.Context, r *sdk.CallToolRequest, in sandboxInput) (*sdk.CallToolResult, error) {
			x, err := s.config.Sessions.Get(s.tenantOf(r), in.ID)
			if errors.Is(err, isolation.ErrNotFound) {
				return structured(map[string]any{"sandbox_id": in.ID, "deleted": false}), nil
			} else if err != nil {
				return nil, err
			}
			if err := x.Delete(ctx); err != nil {
				return nil, err
			}
			return structured(map[string]any{"sandbox_id": in.ID, "deleted": true}), nil
		})
	add(s, &sdk.Tool{Name: "exec", Title: "Run a command in a sandbox", Annotations: &sdk.ToolAnnotations{DestructiveHint: &yes, OpenWorldHint: &no},
		Description: "Run a shell command in a sandbox. Returns stdout, stderr and the exit code."}, s.exec)
	add(s, &sdk.Tool{Name: "read_file", Title: "Read a file of a sandbox", Annotations: &sdk.ToolAnnotations{ReadOnlyHint: true, DestructiveHint: &no, OpenWorldHint: &no},
		Description: "Read a file of a sandbox, of up to 4 MiB: text as text, an image as an image, anything else as a resource."}, s.read)
	add(s, &sdk.Tool{Name: "write_file", Title: "Write a file in a sandbox", Annotations: &sdk.ToolAnnotations{DestructiveHint: &yes, IdempotentHint: yes, OpenWorldHint: &no},
		Description: "Write a file in a sandbox, in the place of one that is there. Directories above it are made."}, s.write)
	add(s, &sdk.Tool{Name: "list_files", Title: "List a directory of a sandbox", Annotations: &sdk.ToolAnnotations{ReadOnlyHint: true, DestructiveHint: &no, OpenWorldHint: &no},
		Description: "List a directory of a sandbox."}, s.list)
}

// structured is a result that is an object, as text too, for clients that know no
// other.
func structured(v any) *sdk.CallToolResult {
	b, err := json.Marshal(v)
	if err != nil {
		return failure(err)
	}
	return &sdk.CallToolResult{StructuredContent: json.RawMessage(b), Content: []sdk.Content{&sdk.TextContent{Text: string(b)}}}
}

func describeSession(x *session.Session) map[string]any {
	i := x.Info()
	return map[string]any{"sandbox_id": i.ID, "status": i.Status, "tier": i.Decision.Got, "engine": i.Decision.Engine, "expires": i.Expires}
}

func (s *Server) create(ctx context.Context, r *sdk.CallToolRequest, in createInput) (*sdk.CallToolResult, error) {
	if in.MemoryMB < 0 || in.MemoryMB > 1<<20 || in.IdleSeconds < 0 || in.IdleSeconds > 30*24*3600 {
		return nil, fmt.Errorf("memory_mb or idle_seconds is out of bounds: %w", isolation.ErrInvalidArgument)
	}
	who := s.tenantOf(r)
	if n := len(s.config.Sessions.List(who, nil)); n >= maxOwned {
		return nil, fmt.Errorf("there are %d sandboxes; delete some: %w", n, isolation.ErrResourceExhausted)
	}
	req := session.Request{Ephemeral: s.config.Ephemeral, Source: s.config.Source, Idle: time.Duration(in.IdleSeconds) * time.Second}
	req.Spec.Requirement, req.Spec.Root.Image = isolation.Arbitrary, in.Image
	req.Spec.Resources.MemoryBytes = in.MemoryMB << 20
	var err error
	if req.MinTier, err = tierOf(in.MinTier, req.Spec.Requirement); err != nil {
		return nil, err
	}
	x, err := s.config.Sessions.Create(ctx, who, req)
	if err != nil {
		return nil, err
	}
	return structured(describeSession(x)), nil
}

func (s *Server) exec(ctx context.Context, r *sdk.CallToolRequest, in execInput) (*sdk.CallToolResult, error) {
	x, err := s.config.Sessions.Get(s.tenantOf(r), in.ID)
	if err != nil {
		return nil, err
	}
	if in.TimeoutMS < 0 || in.TimeoutMS > maxWall.Milliseconds() {
		return nil, fmt.Errorf("timeout_ms is out of bounds: %w", isolation.ErrInvalidArgument)
	}
	args, err := isolation.ScriptArgs("sh", in.Command)
	if err != nil {
		return nil, err
	}
	p := isolation.ProcessSpec{Args: args, Cwd: in.Cwd, Limits: isolation.Limits{Wall: time.Duration(in.TimeoutMS) * time.Millisecond}}
	if in.TimeoutMS == 0 {
		p.Limits.Wall = defaultWall
	}
	if p.Cwd == "" {
		p.Cwd = "/tmp"
	}
	e, err := x.Exec(ctx, p, in.Stdin != "", true)
	if err != nil {
		return nil, err
	}
	if in.Stdin != "" {
		go func() { // it ends with ctx, or with the program
			if err := e.GiveStdin(ctx, strings.NewReader(in.Stdin), 0, true); err != nil {
				s.config.Logger.DebugContext(ctx, "exec: input", "error", err)
			}
		}()
	}
	var out, errOut kept
	err = e.Follow(ctx, isolation.Offsets{}, func(st session.Stream, b []byte) error {
		if st == session.Stderr {
			errOut.add(b)
		} else {
			out.add(b)
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil { // its caller gave up
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, e.Kill(end, isolation.SIGKILL))
		}
		return nil, err
	}
	exit, err := e.Wait(ctx)
	if err != nil {
		return nil, err
	}
	res := outputOf(exit, out.String(), errOut.String(), out.cut() || errOut.cut())
	i := x.Info()
	res.StructuredContent = runOutput{
		Stdout: out.String(), Stderr: errOut.String(), ExitCode: exit.Code, Reason: string(exit.Reason), Truncated: out.cut() || errOut.cut(),
		Tier: i.Decision.Got.String(), Engine: i.Decision.Engine, WallMS: float64(exit.Usage.Wall) / float64(time.Millisecond),
	}
	return res, nil
}

// kept is the beginning and the end of a stream.
type kept struct {
	head, tail []byte
	dropped    int64
}

func (k *kept) add(b []byte) {
	n := min(len(b), headBytes-len(k.head))
	k.head, b = append(k.head, b[:n]...), b[n:]
	k.tail = append(k.tail, b...)
	if over := len(k.tail) - tailBytes; over > 0 {
		k.dropped += int64(over)
		k.tail = append(k.tail[:0], k.tail[over:]...)
	}
}

func (k *kept) cut() bool { return k.dropped > 0 }

func (k *kept) String() string {
	return engine.Text{Head: k.head, Tail: k.tail, Omitted: k.dropped}.String()
}

func guestPath(name string) error {
	if !path.IsAbs(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("path %.200q is not absolute: %w", name, isolation.ErrInvalidArgument)
	}
	return nil
}

// files finds a sandbox's files.
func (s *Server) files(ctx context.Context, r *sdk.CallToolRequest, id, name string) (interface {
	isolation.Files
	isolation.Directories
}, error) {
	if err := guestPath(name); err != nil {
		return nil, err
	}
	x, err := s.config.Sessions.Get(s.tenantOf(r), id)
	if err != nil {
		return nil, err
	}
	return x.Files(ctx)
}

func (s *Server) read(ctx context.Context, r *sdk.CallToolRequest, in pathInput) (*sdk.CallToolResult, error) {
	files, err := s.files(ctx, r, in.ID, in.Path)
	if err != nil {
		return nil, err
	}
	f, err := files.ReadFile(ctx, in.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%.200q has more than %d bytes; take a part of it, by exec: %w", in.Path, maxFile, isolation.ErrResourceExhausted)
	}
	media := mediaType(in.Path, b)
	var c sdk.Content
	switch {
	case strings.HasPrefix(media, "image/"):
		c = &sdk.ImageContent{Data: b, MIMEType: media}
	case utf8.Valid(b):
		c = &sdk.TextContent{Text: string(b)}
	default:
		c = &sdk.EmbeddedResource{Resource: &sdk.ResourceContents{URI: "axo://" + in.ID + path.Clean(in.Path), MIMEType: media, Blob: b}}
	}
	return &sdk.CallToolResult{Content: []sdk.Content{c}}, nil
}

func (s *Server) write(ctx context.Context, r *sdk.CallToolRequest, in writeInput) (*sdk.CallToolResult, error) {
	content := []byte(in.Text)
	if in.Base64 != "" {
		if in.Text != "" {
			return nil, fmt.Errorf("text and base64 exclude each other: %w", isolation.ErrInvalidArgument)
		}
		var err error
		if content, err = base64.StdEncoding.DecodeString(in.Base64); err != nil {
			return nil, fmt.Errorf("content is not base64: %w", isolation.ErrInvalidArgument)
		}
	}
	files, err := s.files(ctx, r, in.ID, in.Path)
	if err != nil {
		return nil, err
	}
	if err := files.Mkdir(ctx, path.Dir(path.Clean(in.Path)), 0o755); err != nil {
		return nil, err
	}
	if err := files.WriteFile(ctx, path.Clean(in.Path), 0o644, strings.NewReader(string(content))); err != nil {
		return nil, err
	}
	return structured(map[string]any{"path": path.Clean(in.Path), "bytes": len(content)}), nil
}

func (s *Server) list(ctx context.Context, r *sdk.CallToolRequest, in pathInput) (*sdk.CallToolResult, error) {
	files, err := s.files(ctx, r, in.ID, in.Path)
	if err != nil {
		return nil, err
	}
	list, err := files.ReadDir(ctx, in.Path)
	more := errors.Is(err, isolation.ErrResourceExhausted) // what a listing takes is there
	if err != nil && !more {
		return nil, err
	}
	entries := []map[string]any{}
	for _, e := range list {
		entries = append(entries, map[string]any{"name": strings.ToValidUTF8(e.Name(), "�"), "dir": e.IsDir(), "bytes": e.Size(), "mode": e.Mode().String()})
	}
	slices.SortFunc(entries, func(a, b map[string]any) int { return strings.Compare(a["name"].(string), b["name"].(string)) })
	more = more || len(entries) > maxEntries
	return structured(map[string]any{"path": path.Clean(in.Path), "entries": entries[:min(len(entries), maxEntries)], "more": more}), nil
}
