package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation/internal/testprog"
)

// exampleTools are those of examples/tools, and the tier that a call is to run in where
// there is no virtual machine.
var exampleTools = map[string]string{"text-diff": "wasm", "edit-distance": "wasm", "csv-report": "oci", "log-levels": "oci", "calc": "oci"}

// buildExamples makes a copy of examples/tools, built.
func buildExamples(t *testing.T, env []string) (dir string) {
	t.Helper()
	testprog.Busybox(t)
	testprog.C(t, "hello") // a compiler for WebAssembly is there
	dir = filepath.Join(t.TempDir(), "tools")
	if err := os.CopyFS(dir, os.DirFS("../examples/tools")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && exampleTools[e.Name()] == "" {
			t.Errorf("%s is an example that is not tried", e.Name())
		}
	}
	build := exec.Command("go", "build", "-o", "tool.wasm", ".")
	build.Dir = filepath.Join(dir, "text-diff")
	build.Env = append(os.Environ(), "GO111MODULE=off", "GOFLAGS=", "GOWORK=off", "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	mustRun(t, build)
	i := slices.IndexFunc([]string{"clang", "clang-14"}, func(n string) bool { _, err := exec.LookPath(n); return err == nil })
	if i < 0 {
		t.Fatal("no clang, and a program has been built by one")
	}
	cc := exec.Command([]string{"clang", "clang-14"}[i], "--target=wasm32-wasi", "-O2", "-o", "tool.wasm", "main.c")
	cc.Dir = filepath.Join(dir, "edit-distance")
	mustRun(t, cc)
	axo, err := exec.LookPath("axo")
	if err != nil {
		t.Fatal(err)
	}
	image := exec.Command("sh", filepath.Join(dir, "calc", "image.sh"), axo)
	image.Env = env
	mustRun(t, image)
	return dir
}

// testTools has tools tested as their manifests say, and looks where that was.
func testTools(t *testing.T, env []string, tier, engine string, names ...string) {
	t.Helper()
	var list []struct {
		Name, Problem string
		Result        struct {
			Tool string
			Run  *struct{ Tier, Engine string }
		}
	}
	if err := json.Unmarshal([]byte(mustRun(t, axoCommand(t, env, append([]string{"tool", "test", "--json"}, names...)...))), &list); err != nil {
		t.Fatal(err)
	}
	ran := map[string]bool{}
	for _, x := range list {
		if x.Problem != "" {
			t.Errorf("%s: %s: %s", x.Result.Tool, x.Name, x.Problem)
		}
		name, _, _ := strings.Cut(x.Result.Tool, "@")
		if r := x.Result.Run; r != nil {
			ran[name] = true
			if r.Tier != tier || engine != "" && r.Engine != engine {
				t.Errorf("%s ran in %s/%s, want %s/%s", name, r.Tier, r.Engine, tier, engine)
			}
		}
	}
	for _, name := range names {
		if !ran[name] {
			t.Errorf("%s: none of its tests ran it", name)
		}
	}
}

func TestExampleTools(t *testing.T) {
	env := mcpEnv(t)
	dir := buildExamples(t, env)
	byTier := map[string][]string{}
	var dirs []string
	for name, tier := range exampleTools {
		byTier[tier] = append(byTier[tier], name)
		dirs = append(dirs, filepath.Join(dir, name))
	}
	mustRun(t, axoCommand(t, env, append([]string{"tool", "add"}, dirs...)...))
	testTools(t, append(slices.Clone(env), "AXO_ALLOW_ENGINES=wazero"), "wasm", "wazero", byTier["wasm"]...)
	testTools(t, env, "oci", "", byTier["oci"]...)
	t.Run("wasmtime", func(t *testing.T) {
		worker := testprog.Wasmtime(t)
		testTools(t, append(slices.Clone(env), "AXO_ALLOW_ENGINES=wasmtime", "AXO_WASMTIME_WORKER_PATH="+worker), "wasm", "wasmtime", byTier["wasm"]...)
	})

	s := mcpSession(t, axoCommand(t, env, "mcp", "serve", "--tools-only"), nil)
	for name, c := range map[string]struct {
		args map[string]any
		want string // in the structured result
	}{
		"text-diff":     {map[string]any{"old": "a\nb\n", "new": "a\nc\n"}, `"diff":"--- text\n+++ text\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"`},
		"edit-distance": {map[string]any{"a": "flaw", "b": "lawn"}, `"distance":2`},
		"log-levels":    {map[string]any{"log": "fatal: \"x\"\n", "show": 3}, `"first_errors":["fatal: \"x\""]`},
		"calc":          {map[string]any{"expression": "6*7"}, `"result":"42"`},
		"csv-report":    {map[string]any{"csv": "n,m\n1,x\n3,y\n"}, `"plot":"n"`},
	} {
		r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: name, Arguments: c.args})
		if err != nil || r.IsError {
			t.Errorf("%s: %v %v", name, err, r)
			continue
		}
		if b, _ := json.Marshal(r.StructuredContent); !strings.Contains(string(b), c.want) {
			t.Errorf("%s: %s", name, b)
		}
		if name != "csv-report" {
			continue
		}
		image := slices.IndexFunc(r.Content, func(c sdk.Content) bool {
			i, ok := c.(*sdk.ImageContent)
			return ok && (i.MIMEType == "image/svg+xml" && bytes.Contains(i.Data, []byte("<polyline")) || i.MIMEType == "image/png" && bytes.HasPrefix(i.Data, []byte("\x89PNG")))
		})
		if image < 0 {
			t.Errorf("no plot in %v", r.Content)
		}
	}
}

// TestToolSecrets: a secret reaches the tool, and nothing else: no command line, no
// log, no audit log, nothing on disk.
func TestToolSecrets(t *testing.T) {
	const canary = "canary-6f1d2c"
	env := append(mcpEnv(t), "OF_THE_DAEMON="+canary+"-1")
	dir := t.TempDir()
	file := filepath.Join(dir, "secret")
	if err := errors.Join(os.WriteFile(file, []byte(canary+"-22\n"), 0o600), os.WriteFile(filepath.Join(dir, "tool.toml"), []byte(`name = "keeper"
version = "1"
description = "Has two secrets."
convention = "args"
[entrypoint]
source = "main.sh"
language = "sh"
[secrets]
ONE = "env:OF_THE_DAEMON"
TWO = "file:`+file+`"
[input]
type = "object"
properties.wait = { type = "boolean" }
[env]
WAIT = "{wait}"
`), 0o600), os.WriteFile(filepath.Join(dir, "main.sh"), []byte(`echo '{"progress": 1}' >&2
[ "${WAIT:-}" != true ] || sleep 3637
echo "${#ONE} ${#TWO}"
`), 0o600)); err != nil {
		t.Fatal(err)
	}
	mustRun(t, axoCommand(t, env, "tool", "add", dir))
	key := addKeys(t, env, "one")[0]
	var log bytes.Buffer
	cmd := axoCommand(t, env, "serve", "--listen", "127.0.0.1:0", "--warm", "0")
	cmd.Stderr = &log
	url := startDaemon(t, cmd) + "/mcp"
	moves := make(chan struct{}, 4)
	s := httpSession(t, url, key, "", &sdk.ClientOptions{ProgressNotificationHandler: func(context.Context, *sdk.ProgressNotificationClientRequest) { moves <- struct{}{} }})
	call := func(ctx context.Context, wait bool) (*sdk.CallToolResult, error) {
		return s.CallTool(ctx, &sdk.CallToolParams{Name: "keeper", Arguments: map[string]any{"wait": wait}, Meta: sdk.Meta{"progressToken": 1}})
	}
	r, err := call(t.Context(), false)
	if want := fmt.Sprintf("%d %d\n", len(canary)+2, len(canary)+3); err != nil || text(r) != want {
		t.Fatalf("%v %v, want %q", r, err, want)
	}
	if b, _ := json.Marshal(r); bytes.Contains(b, []byte(canary)) {
		t.Errorf("in the result: %s", b)
	}
	<-moves

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = call(ctx, true)
	}()
	<-moves
	for seen, end := false, time.Now().Add(time.Minute); !seen; time.Sleep(10 * time.Millisecond) {
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range lines {
			b, _ := os.ReadFile(name) // it may have ended
			seen = seen || bytes.Contains(b, []byte("sleep\x003637"))
			if bytes.Contains(b, []byte(canary)) {
				t.Fatalf("in a command line: %q", b)
			}
		}
		if time.Now().After(end) {
			t.Fatal("the tool's own command line is not among those that were looked at")
		}
	}
	cancel()
	<-done
	state := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "AXO_STATE_DIR="); ok {
			state = v
		}
	}
	if out := mustRun(t, axoCommand(t, env, "audit", "export")); strings.Contains(out, canary) || !strings.Contains(out, `"tool":"keeper@1"`) {
		t.Errorf("the audit log: %s", out)
	}
	if out, err := exec.Command("grep", "-rl", canary, state).Output(); err == nil || len(out) > 0 {
		t.Errorf("in the state directory: %s", out)
	}
	stopDaemon(t, cmd)
	if strings.Contains(log.String(), canary) || log.Len() == 0 {
		t.Errorf("the log: %s", log.String())
	}
}

// TestREADMETool runs what README.md says of a tool, from nothing to an MCP client.
func TestREADMETool(t *testing.T) {
	inspector := testprog.MCP(t, "inspector")
	env := mcpEnv(t)
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "Tools are declared once and called by name")
	if !ok {
		t.Fatal("README.md says nothing of tools")
	}
	dir := t.TempDir()
	axo, err := exec.LookPath("axo")
	if err != nil {
		t.Fatal(err)
	}
	// The inspector that is pinned, and not one from the network.
	if err := errors.Join(
		os.Symlink(axo, filepath.Join(dir, "axo")),
		os.WriteFile(filepath.Join(dir, "npx"), []byte("#!/bin/sh\n[ \"$1\" = @modelcontextprotocol/inspector ] && shift && exec node "+inspector+" \"$@\"\n"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	env = append(env, "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
	command := regexp.MustCompile(`^    \$ (.*)$`)
	var commands, wants []string
	for line := range strings.Lines(rest) {
		line = strings.TrimRight(line, "\n")
		if m := command.FindStringSubmatch(line); m != nil {
			commands, wants = append(commands, m[1]), append(wants, "")
		} else if strings.HasPrefix(line, "    ") && len(wants) > 0 {
			wants[len(wants)-1] += strings.TrimSpace(line) + "\n"
		} else if len(commands) > 0 {
			break
		}
	}
	if len(commands) < 5 {
		t.Fatalf("%d commands", len(commands))
	}
	for i, c := range commands {
		cmd := exec.Command("sh", "-c", c)
		cmd.Dir, cmd.Env = dir, env
		out := mustRun(t, cmd)
		if wants[i] != "" && strings.TrimSpace(out) != strings.TrimSpace(wants[i]) {
			t.Errorf("%s\nsays %s\nand README.md %s", c, out, wants[i])
		}
	}
}
