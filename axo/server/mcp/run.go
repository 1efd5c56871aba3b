package mcp

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// Output of a run that is sent: so much of the beginning and of the end.
const (
	headBytes = 96 << 10
	tailBytes = 32 << 10
)

// defaultWall bounds what does not say how long it may take; maxWall what does.
const (
	defaultWall = time.Minute
	maxWall     = time.Hour
)

// limits are what a caller may ask for.
type limits struct {
	TimeoutMS int64  `json:"timeout_ms,omitempty" jsonschema:"end it after this time, in milliseconds; 60000 if not given"`
	MemoryMB  int64  `json:"memory_mb,omitempty" jsonschema:"memory that it may use, in MiB"`
	MinTier   string `json:"min_tier,omitempty" jsonschema:"run it in this tier or a stronger one: wasm, oci (container) or microvm"`
}

func (l limits) apply(r *engine.Request) error {
	if l.TimeoutMS < 0 || l.MemoryMB < 0 || l.TimeoutMS > maxWall.Milliseconds() || l.MemoryMB > 1<<20 {
		return fmt.Errorf("timeout_ms or memory_mb is out of bounds: %w", isolation.ErrInvalidArgument)
	}
	r.Process.Limits.Wall = time.Duration(l.TimeoutMS) * time.Millisecond
	if l.TimeoutMS == 0 {
		r.Process.Limits.Wall = defaultWall
	}
	r.Spec.Resources.MemoryBytes = l.MemoryMB << 20
	t, err := tierOf(l.MinTier, r.Spec.Requirement)
	r.MinTier = t
	return err
}

// tierOf reads a least tier. One below the default is met by that, and does not lower
// it: what a model asks for is nobody's consent.
func tierOf(name string, what isolation.Requirement) (*isolation.Tier, error) {
	if name == "" {
		return nil, nil
	}
	t, err := isolation.ParseTier(name)
	if err != nil {
		return nil, err
	}
	return new(max(t, engine.DefaultMinTier(what))), nil
}

type pythonInput struct {
	Code  string   `json:"code" jsonschema:"Python source; what it prints is the result"`
	Args  []string `json:"args,omitempty" jsonschema:"sys.argv[1:]"`
	Stdin string   `json:"stdin,omitempty" jsonschema:"what it reads from stdin"`
	limits
}

type shellInput struct {
	Command string `json:"command" jsonschema:"a command for sh"`
	Stdin   string `json:"stdin,omitempty" jsonschema:"what it reads from stdin"`
	limits
}

type wasmInput struct {
	Module string   `json:"module" jsonschema:"a WASI command (preview 1), in base64"`
	Args   []string `json:"args,omitempty" jsonschema:"its arguments"`
	Stdin  string   `json:"stdin,omitempty" jsonschema:"what it reads from stdin"`
	Fuel   uint64   `json:"fuel,omitempty" jsonschema:"end it after about this many instructions"`
	limits
}

type explainInput struct {
	Requirement string `json:"requirement" jsonschema:"what would run: WasmCompiled, Python, Shell, Arbitrary or ContainerImage"`
	Image       string `json:"image,omitempty" jsonschema:"the image's name, for ContainerImage"`
	limits
}

// runOutput is what is told of a program.
type runOutput struct {
	Stdout    string  `json:"stdout"`
	Stderr    string  `json:"stderr"`
	ExitCode  int     `json:"exit_code"`
	Reason    string  `json:"reason" jsonschema:"what ended it: exited, signaled, timeout_wall, oom, ..."`
	Truncated bool    `json:"truncated,omitempty" jsonschema:"something that it wrote is not in stdout or stderr"`
	Tier      string  `json:"tier,omitempty"`
	Engine    string  `json:"engine,omitempty"`
	WallMS    float64 `json:"wall_ms"`
}

func (s *Server) addRuns() {
	yes, no := true, false
	// What runs is gone afterwards, and sees no network.
	run := &sdk.ToolAnnotations{DestructiveHint: &no, OpenWorldHint: &no}
	add(s, &sdk.Tool{Name: "run_python", Title: "Run Python", Annotations: run,
		Description: "Run Python source once, isolated: standard library, a private /tmp, no network. Returns stdout, stderr and the exit code."},
		func(ctx context.Context, r *sdk.CallToolRequest, in pythonInput) (*sdk.CallToolResult, error) {
			return s.script(ctx, r, isolation.Python, "python", in.Code, in.Args, in.Stdin, in.limits)
		})
	add(s, &sdk.Tool{Name: "run_shell", Title: "Run a shell command", Annotations: run,
		Description: "Run a shell command once, isolated: the host's programs, read-only, a private /tmp, no network. Returns stdout, stderr and the exit code."},
		func(ctx context.Context, r *sdk.CallToolRequest, in shellInput) (*sdk.CallToolResult, error) {
			return s.script(ctx, r, isolation.Shell, "sh", in.Command, nil, in.Stdin, in.limits)
		})
	add(s, &sdk.Tool{Name: "run_wasm", Title: "Run a WebAssembly module", Annotations: run,
		Description: "Run a WebAssembly module (a WASI command) once, isolated, without files and network. Returns stdout, stderr and the exit code."},
		func(ctx context.Context, r *sdk.CallToolRequest, in wasmInput) (*sdk.CallToolResult, error) {
			module, err := base64.StdEncoding.DecodeString(in.Module)
			if err != nil || len(module) == 0 {
				return nil, fmt.Errorf("module is not base64: %w", isolation.ErrInvalidArgument)
			}
			req := engine.Request{Spec: isolation.Spec{Requirement: isolation.WasmCompiled, Module: isolation.Module{Data: module}}}
			req.Process.Args = append([]string{"module"}, in.Args...)
			if err := in.apply(&req); err != nil {
				return nil, err
			}
			req.Process.Limits.Fuel = in.Fuel
			return s.run(ctx, r, req, in.Stdin)
		})
	add(s, &sdk.Tool{Name: "explain", Title: "Explain where something would run", Annotations: &sdk.ToolAnnotations{ReadOnlyHint: true, DestructiveHint: &no, IdempotentHint: yes, OpenWorldHint: &no},
		Description: "Say in which tier of isolation and with which engine something would run, what was passed over and why, without running it."},
		func(ctx context.Context, r *sdk.CallToolRequest, in explainInput) (*sdk.CallToolResult, error) {
			req := engine.Request{Spec: isolation.Spec{Root: isolation.Root{Image: in.Image}, Tenant: s.tenantOf(r)}, Source: s.config.Source}
			req.Process.Args = []string{"x"}
			var err error
			if req.Spec.Requirement, err = isolation.ParseRequirement(in.Requirement); err != nil {
				return nil, err
			}
			if req.Spec.Requirement == isolation.NativeTrusted {
				return nil, fmt.Errorf("what is trusted is the operator's to say: %w", isolation.ErrPermissionDenied)
			}
			if req.Spec.Requirement == isolation.WasmCompiled {
				req.Spec.Module.Data = []byte("\x00asm\x01\x00\x00\x00")
			}
			if err := in.apply(&req); err != nil {
				return nil, err
			}
			d, err := s.config.Engine.Explain(ctx, req)
			if err != nil {
				return nil, err
			}
			return structured(d), nil
		})
}

// add adds a tool that is built in. An error of its handler is a result.
func add[In any](s *Server, t *sdk.Tool, h func(context.Context, *sdk.CallToolRequest, In) (*sdk.CallToolResult, error)) {
	schema, err := jsonschema.For[In](nil)
	if err != nil {
		panic(err) // the types are here
	}
	t.InputSchema = schema
	s.own[t.Name] = true
	sdk.AddTool(s.sdk, t, func(ctx context.Context, r *sdk.CallToolRequest, in In) (*sdk.CallToolResult, any, error) {
		res, err := h(ctx, r, in)
		if err != nil {
			return nil, nil, s.told(ctx, t.Name, err)
		}
		return res, nil, nil
	})
}

func (s *Server) script(ctx context.Context, r *sdk.CallToolRequest, what isolation.Requirement, language, code string, args []string, stdin string, l limits) (*sdk.CallToolResult, error) {
	if strings.TrimSpace(code) == "" {
		return nil, fmt.Errorf("there is no code: %w", isolation.ErrInvalidArgument)
	}
	req := engine.Request{Spec: isolation.Spec{Requirement: what}}
	var err error
	if req.Process.Args, err = isolation.ScriptArgs(language, code, args...); err != nil {
		return nil, err
	}
	if err := l.apply(&req); err != nil {
		return nil, err
	}
	return s.run(ctx, r, req, stdin)
}

func (s *Server) run(ctx context.Context, r *sdk.CallToolRequest, req engine.Request, stdin string) (*sdk.CallToolResult, error) {
	req.Source, req.Spec.Tenant = s.config.Source, s.tenantOf(r)
	req.Stdin = strings.NewReader(stdin)
	req.Capture = engine.Capture{Head: headBytes, Tail: tailBytes}
	res, err := s.config.Engine.Run(ctx, req)
	if err != nil {
		return nil, err
	}
	out := outputOf(res.Exit, res.Stdout.String(), res.Stderr.String(), res.Truncated)
	out.StructuredContent = runOutput{
		Stdout: res.Stdout.String(), Stderr: res.Stderr.String(), ExitCode: res.Exit.Code, Reason: string(res.Exit.Reason), Truncated: res.Truncated,
		Tier: res.Tier.String(), Engine: res.Engine, WallMS: float64(res.Usage.Wall) / float64(time.Millisecond),
	}
	out.Meta = sdk.Meta{metaRun: summary(res)}
	return out, nil
}

// outputOf has what a program wrote as text.
func outputOf(e isolation.Exit, stdout, stderr string, cut bool) *sdk.CallToolResult {
	var b strings.Builder
	b.WriteString(stdout)
	if stderr != "" {
		if stdout != "" && !strings.HasSuffix(stdout, "\n") {
			b.WriteByte('\n')
		}
		b.WriteString("stderr:\n" + stderr)
	}
	if !e.Success() {
		fmt.Fprintf(&b, "\n[%v]", e)
	}
	if cut {
		b.WriteString("\n[not all of the output is here]")
	}
	return &sdk.CallToolResult{IsError: !e.Success(), Content: []sdk.Content{&sdk.TextContent{Text: b.String()}}}
}
