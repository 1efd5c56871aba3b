package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation/internal/testprog"
)

// mcpTools are what the tests of MCP call.
var mcpTools = map[string]map[string]string{
	"picture": {
		"tool.toml": `name = "picture"
version = "1"
title = "A picture"
description = "Makes a picture of one dot, and says how it gets on."
concurrency = 1 # so that one which goes on although its caller gave up is found out
[entrypoint]
source = "main.py"
language = "python"
[annotations]
read_only = true
[input]
type = "object"
properties.wait = { type = "boolean" }
[output]
type = "object"
required = ["dots"]
[[files.out]]
path = "/tmp/dot.png"
[[files.out]]
path = "/tmp/dot.txt"
[[files.out]]
path = "/tmp/dot.bin"
`,
		"main.py": `import json, sys, time
given = json.load(sys.stdin)
print(json.dumps({"progress": 1, "total": 2, "message": "drawing"}), file=sys.stderr, flush=True)
if given.get("wait"):
    time.sleep(3600)
for name, content in (("png", b"\x89PNG\r\n\x1a\n"), ("txt", b"a dot"), ("bin", b"\xff\x00")):
    with open("/tmp/dot." + name, "wb") as f:
        f.write(content)
print(json.dumps({"dots": 1}))
`,
	},
}

func writeTools(t *testing.T) (dirs []string) {
	t.Helper()
	for name, files := range mcpTools {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// mcpEnv is where axo finds what it needs, with a state directory of the test's.
func mcpEnv(t testing.TB) []string {
	t.Helper()
	w, g := worker, guest
	if w == "" {
		w = testprog.Worker(t)
	}
	if g == "" {
		g = testprog.Guest(t)
	}
	env := []string{"AXO_WASM_WORKER_PATH=" + w, "AXO_GUEST_PATH=" + g, "AXO_STATE_DIR=" + filepath.Join(t.TempDir(), "state")}
	if !haveContainers(t, env) {
		t.Skip("SKIPPED, NOT PROVED: no containers")
	}
	return append(os.Environ(), env...)
}

func axoCommand(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	axo, err := exec.LookPath("axo")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(axo, args...)
	cmd.Env = env
	return cmd
}

func mustRun(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args[1:], err, out, errOut.String())
	}
	return string(out)
}

// text is what a result says.
func text(r *sdk.CallToolResult) string {
	var b strings.Builder
	for _, c := range r.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			b.WriteString(t.Text)
		}
	}
	return b.String()
}

// mcpSession connects the official client to a program.
func mcpSession(t testing.TB, cmd *exec.Cmd, o *sdk.ClientOptions) *sdk.ClientSession {
	t.Helper()
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	s, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o).Connect(context.Background(), &sdk.CommandTransport{Command: cmd}, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, errOut.String())
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v\n%s", err, errOut.String())
		}
	})
	return s
}

func TestMCP(t *testing.T) {
	env := mcpEnv(t)
	dirs := writeTools(t)
	changed, moves := make(chan struct{}, 16), make(chan *sdk.ProgressNotificationParams, 16)
	s := mcpSession(t, axoCommand(t, env, "mcp", "serve"), &sdk.ClientOptions{
		ToolListChangedHandler:      func(context.Context, *sdk.ToolListChangedRequest) { changed <- struct{}{} },
		ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) { moves <- r.Params },
	})
	ctx := t.Context()
	call := func(ctx context.Context, name string, args map[string]any, token any) (*sdk.CallToolResult, error) {
		p := &sdk.CallToolParams{Name: name, Arguments: args}
		if token != nil {
			p.Meta = sdk.Meta{"progressToken": token}
		}
		return s.CallTool(ctx, p)
	}
	must := func(name string, args map[string]any) *sdk.CallToolResult {
		t.Helper()
		r, err := call(ctx, name, args, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return r
	}
	find := func(name string) *sdk.Tool {
		t.Helper()
		l, err := s.ListTools(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(l.Tools, func(x *sdk.Tool) bool { return x.Name == name }); i >= 0 {
			return l.Tools[i]
		}
		return nil
	}
	if find("picture") != nil || find("run_python") == nil {
		t.Error("tools at the beginning")
	}

	// What is added by another process is there, and the client is told.
	mustRun(t, axoCommand(t, env, append([]string{"tool", "add"}, dirs...)...))
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("nobody said that the tools have changed")
	}
	tl := find("picture")
	if tl == nil || tl.Title != "A picture" || !tl.Annotations.ReadOnlyHint || tl.OutputSchema == nil || tl.InputSchema == nil {
		t.Fatalf("%+v", tl)
	}

	r, err := call(ctx, "picture", map[string]any{}, "token")
	if err != nil || r.IsError {
		t.Fatalf("%v %s", err, text(r))
	}
	if b, _ := json.Marshal(r.StructuredContent); string(b) != `{"dots":1}` || len(r.Content) != 4 {
		t.Fatalf("%s and %d contents", b, len(r.Content))
	}
	if i, ok := r.Content[1].(*sdk.ImageContent); !ok || i.MIMEType != "image/png" || string(i.Data) != "\x89PNG\r\n\x1a\n" {
		t.Errorf("%+v", r.Content[1])
	}
	if x, ok := r.Content[2].(*sdk.EmbeddedResource); !ok || x.Resource.Text != "a dot" {
		t.Errorf("%+v", r.Content[2])
	}
	if x, ok := r.Content[3].(*sdk.EmbeddedResource); !ok || string(x.Resource.Blob) != "\xff\x00" {
		t.Errorf("%+v", r.Content[3])
	}
	if m, ok := r.Meta["axo/run"].(map[string]any); !ok || m["tier"] != "oci" {
		t.Errorf("meta: %v", r.Meta)
	}
	if p := <-moves; p.ProgressToken != "token" || p.Progress != 1 || p.Total != 2 || p.Message != "drawing" {
		t.Errorf("progress: %+v", p)
	}

	// Who gives up is not waited for, and leaves nothing.
	giveUp, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := call(giveUp, "picture", map[string]any{"wait": true}, "other")
		done <- err
	}()
	<-moves
	cancel()
	if err := <-done; err == nil {
		t.Error("a call that was given up has a result")
	}

	// Failures of tools are results, of the protocol errors.
	if _, err := call(ctx, "no_such_tool", nil, nil); err == nil {
		t.Error("a tool that is not there has a result")
	}
	for name, args := range map[string]map[string]any{
		"picture": {"wait": "yes"}, "run_shell": {"command": "exit 3"}, "run_python": {"cod": "x"}, "run_wasm": {"module": "AAAA"},
		"exec": {"sandbox_id": "gone", "command": "true"}, "explain": {"requirement": "NativeTrusted"},
	} {
		if r := must(name, args); !r.IsError || text(r) == "" {
			t.Errorf("%s %v: %+v", name, args, r)
		}
	}
	if r := must("run_python", map[string]any{"code": "import sys; print(sys.argv[1:], input())", "args": []string{"a"}, "stdin": "in"}); text(r) != "['a'] in\n" {
		t.Errorf("%q", text(r))
	}
	if r := must("run_shell", map[string]any{"command": "sleep 60", "timeout_ms": 50}); !r.IsError || !strings.Contains(text(r), "timeout_wall") {
		t.Errorf("%q", text(r))
	}
	if r := must("explain", map[string]any{"requirement": "Python"}); !strings.Contains(text(r), `"got":"oci"`) {
		t.Errorf("%s", text(r))
	}

	// A sandbox keeps its files between calls.
	var made struct {
		ID string `json:"sandbox_id"`
	}
	if err := json.Unmarshal([]byte(text(must("create_sandbox", nil))), &made); err != nil || made.ID == "" {
		t.Fatal(err)
	}
	must("write_file", map[string]any{"sandbox_id": made.ID, "path": "/tmp/d/x", "base64": "aGVsbG8="})
	if r := must("exec", map[string]any{"sandbox_id": made.ID, "command": "cat d/x; wc -c", "stdin": "12345"}); text(r) != "hello5\n" {
		t.Errorf("%q", text(r))
	}
	if r := must("read_file", map[string]any{"sandbox_id": made.ID, "path": "/tmp/d/x"}); text(r) != "hello" {
		t.Errorf("%q", text(r))
	}
	if r := must("list_files", map[string]any{"sandbox_id": made.ID, "path": "/tmp/d"}); !strings.Contains(text(r), `"name":"x"`) {
		t.Errorf("%q", text(r))
	}
	if r := must("delete_sandbox", map[string]any{"sandbox_id": made.ID}); r.IsError {
		t.Errorf("%q", text(r))
	}
	if r := must("list_sandboxes", nil); text(r) != `{"sandboxes":[]}` {
		t.Errorf("%q", text(r))
	}

	mustRun(t, axoCommand(t, env, "tool", "rm", "picture"))
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("nobody said that the tools have changed")
	}
	if find("picture") != nil {
		t.Error("what was removed is listed")
	}
}

// TestMCPInspector has the protocol's own inspector (npm) list and call tools.
func TestMCPInspector(t *testing.T) {
	inspector := testprog.MCP(t, "inspector")
	env := mcpEnv(t)
	dirs := writeTools(t)
	mustRun(t, axoCommand(t, env, append([]string{"tool", "add"}, dirs...)...))
	axo, err := exec.LookPath("axo")
	if err != nil {
		t.Fatal(err)
	}
	inspect := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("node", slices.Concat([]string{inspector, "--cli", axo, "mcp", "serve", "--warm", "0"}, args)...)
		cmd.Env = env
		return mustRun(t, cmd)
	}
	var listed struct {
		Tools []struct {
			Name        string         `json:"name"`
			InputSchema map[string]any `json:"inputSchema"`
		} `json:"tools"`
	}
	if err := json.Unmarshal([]byte(inspect("--method", "tools/list")), &listed); err != nil || len(listed.Tools) != 12 {
		t.Errorf("%v: %d tools", err, len(listed.Tools))
	}
	var called struct {
		Content           []map[string]any `json:"content"`
		StructuredContent map[string]any   `json:"structuredContent"`
	}
	if err := json.Unmarshal([]byte(inspect("--method", "tools/call", "--tool-name", "picture")), &called); err != nil || called.StructuredContent["dots"] != 1.0 || len(called.Content) != 4 {
		t.Errorf("%v: %v", err, called)
	}
}

// aServer is an MCP server as a stranger would write it, with a message too many.
const aServer = `import json, os, sys
print("some server 1.0 is ready", flush=True)
for line in sys.stdin:
    m = json.loads(line)
    if "id" not in m:
        continue
    if m["method"] == "initialize":
        r = {"protocolVersion": m["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "some", "version": "1"}}
    elif m["method"] == "tools/list":
        r = {"tools": [{"name": "look", "inputSchema": {"type": "object"}}]}
    elif m["method"] == "tools/call":
        r = {"content": [{"type": "text", "text": json.dumps({
            "secret": os.environ.get("SECRET_OF_THE_HOST"), "notes": sorted(os.listdir("/notes")), "home": os.path.exists(m["params"]["arguments"]["home"]),
        })}]}
    else:
        print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "error": {"code": -32601, "message": "no such method"}}), flush=True)
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": r}), flush=True)
`

func TestMCPWrap(t *testing.T) {
	env := append(mcpEnv(t), "SECRET_OF_THE_HOST=canary")
	dir := t.TempDir()
	server, notes := filepath.Join(dir, "server.py"), filepath.Join(dir, "notes")
	if err := errors.Join(os.WriteFile(server, []byte(aServer), 0o600), os.Mkdir(notes, 0o755), os.WriteFile(filepath.Join(notes, "a"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	s := mcpSession(t, axoCommand(t, env, "mcp", "wrap", "--dir", notes+":/notes:ro", "--python", server), nil)
	l, err := s.ListTools(t.Context(), nil)
	if err != nil || len(l.Tools) != 1 || l.Tools[0].Name != "look" {
		t.Fatalf("%v %v", l, err)
	}
	r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "look", Arguments: map[string]any{"home": dir}})
	if err != nil || text(r) != `{"secret": null, "notes": ["a"], "home": false}` {
		t.Errorf("%v %v", text(r), err)
	}
}

// bearer sends a key with each request.
type bearer struct{ key string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.key)
	return http.DefaultTransport.RoundTrip(r)
}

// serveHTTP starts a daemon, and returns its address.
func serveHTTP(t testing.TB, env []string, args ...string) string {
	t.Helper()
	return startDaemon(t, axoCommand(t, env, append([]string{"serve", "--listen", "127.0.0.1:0", "--warm", "0"}, args...)...))
}

// startDaemon starts axo serve, and returns its address.
func startDaemon(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopDaemon(t, cmd) })
	for in := bufio.NewScanner(out); in.Scan(); {
		if at, ok := strings.CutPrefix(in.Text(), "ready: "); ok && strings.HasPrefix(at, "http://") {
			return at
		}
	}
	t.Fatal("the daemon has no address")
	return ""
}

// stopDaemon ends a daemon in order, once.
func stopDaemon(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if cmd.ProcessState != nil {
		return
	}
	_ = cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon: %v", err)
	}
}

// addKeys makes a key for each tenant.
func addKeys(t testing.TB, env []string, tenants ...string) (keys []string) {
	t.Helper()
	for _, who := range tenants {
		keys = append(keys, strings.TrimSpace(mustRun(t, axoCommand(t, env, "key", "add", who))))
	}
	return keys
}

// httpSession connects the official client to a daemon; an empty version is the newest
// one.
func httpSession(t testing.TB, url, key, version string, o *sdk.ClientOptions) *sdk.ClientSession {
	t.Helper()
	s, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o).Connect(t.Context(), &sdk.StreamableClientTransport{
		Endpoint: url, HTTPClient: &http.Client{Transport: bearer{key}}, DisableStandaloneSSE: o == nil,
	}, &sdk.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestMCPOverHTTP(t *testing.T) {
	env := mcpEnv(t)
	mustRun(t, axoCommand(t, env, append([]string{"tool", "add"}, writeTools(t)...)...))
	keys := addKeys(t, env, "one", "two")
	url := serveHTTP(t, env) + "/mcp"
	post := func(change func(*http.Request)) int {
		t.Helper()
		r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"ping"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json, text/event-stream")
		r.Header.Set("Authorization", "Bearer "+keys[0])
		change(r)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	for name, c := range map[string]struct {
		change func(*http.Request)
		want   int
	}{
		"with a key":           {func(*http.Request) {}, 200},
		"without a key":        {func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		"with a wrong key":     {func(r *http.Request) { r.Header.Set("Authorization", "Bearer e2b_x") }, 401},
		"by another name":      {func(r *http.Request) { r.Host = "evil.example" }, 421},
		"from a page's script": {func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }, 403},
	} {
		if got := post(c.change); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	// The same tools without MCP.
	plain := func(method, path, body string) (status int, out map[string]any) {
		t.Helper()
		r, err := http.NewRequest(method, strings.TrimSuffix(url, "/mcp")+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+keys[0])
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
			t.Error(err)
		}
		return res.StatusCode, out
	}
	if st, out := plain("GET", "/v1/tools", ""); st != 200 || len(out["tools"].([]any)) != 1 {
		t.Errorf("%d %v", st, out)
	}
	if st, out := plain("POST", "/v1/tools/picture/calls", `{"input":{}}`); st != 200 || len(out["artifacts"].([]any)) != 3 || out["output"].(map[string]any)["dots"] != 1.0 {
		t.Errorf("%d %v", st, out)
	}
	if st, out := plain("POST", "/v1/tools/picture@1/calls", `{"input":{"wait":1}}`); st != 200 || out["failure"].(map[string]any)["kind"] != "invalid_input" {
		t.Errorf("%d %v", st, out)
	}
	if st, _ := plain("POST", "/v1/tools/nothing/calls", `{"input":{}}`); st != 404 {
		t.Errorf("a tool that is not there: %d", st)
	}
	one, two := httpSession(t, url, keys[0], "", nil), httpSession(t, url, keys[1], "", nil)
	call := func(s *sdk.ClientSession, name string, args map[string]any) *sdk.CallToolResult {
		t.Helper()
		r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: name, Arguments: args})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return r
	}
	if r := call(one, "picture", map[string]any{}); r.IsError || len(r.Content) != 4 {
		t.Errorf("%s", text(r))
	}
	var made struct {
		ID string `json:"sandbox_id"`
	}
	if err := json.Unmarshal([]byte(text(call(one, "create_sandbox", nil))), &made); err != nil || made.ID == "" {
		t.Fatal(err)
	}
	if r := call(one, "exec", map[string]any{"sandbox_id": made.ID, "command": "echo hi"}); text(r) != "hi\n" {
		t.Errorf("%q", text(r))
	}
	if r := call(two, "exec", map[string]any{"sandbox_id": made.ID, "command": "echo hi"}); !r.IsError || !strings.Contains(text(r), "not found") {
		t.Errorf("another tenant's sandbox: %q", text(r))
	}
	if r := call(one, "delete_sandbox", map[string]any{"sandbox_id": made.ID}); r.IsError {
		t.Errorf("%q", text(r))
	}
}
