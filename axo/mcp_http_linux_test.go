package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
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

const whoSees = `[[rule]]
name = "two has no pictures"
tenants = ["two"]
tools = ["pic*"]
deny = "not for two"

[[rule]]
name = "two has no Python"
tenants = ["two"]
requirements = ["Python"]
deny = "not for two"
`

// TestMCPOverHTTPTells: progress, cancellation and changes of the tools reach a client
// over HTTP, of a revision with sessions and of the one without; and a tenant sees no
// tool that its policy denies.
func TestMCPOverHTTPTells(t *testing.T) {
	env := mcpEnv(t)
	rules := filepath.Join(t.TempDir(), "policy.toml")
	if err := os.WriteFile(rules, []byte(whoSees), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, axoCommand(t, env, append([]string{"tool", "add"}, writeTools(t)...)...))
	keys := addKeys(t, env, "one", "two")
	base := serveHTTP(t, env, "--policy", rules)
	for _, version := range []string{"2025-06-18", "2026-07-28"} {
		changed, moves := make(chan struct{}, 16), make(chan *sdk.ProgressNotificationParams, 16)
		s := httpSession(t, base+"/mcp", keys[0], version, &sdk.ClientOptions{
			ToolListChangedHandler:      func(context.Context, *sdk.ToolListChangedRequest) { changed <- struct{}{} },
			ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) { moves <- r.Params },
		})
		if got := s.InitializeResult().ProtocolVersion; got != version {
			t.Errorf("revision %s, want %s", got, version)
		}
		giveUp, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.CallTool(giveUp, &sdk.CallToolParams{Meta: sdk.Meta{"progressToken": "token"}, Name: "picture", Arguments: map[string]any{"wait": true}})
			done <- err
		}()
		if p := <-moves; p.ProgressToken != "token" || p.Progress != 1 || p.Message != "drawing" {
			t.Errorf("%s: progress: %+v", version, p)
		}
		cancel()
		if err := <-done; err == nil {
			t.Errorf("%s: a call that was given up has a result", version)
		}
		// It has the tool's only place until it has ended.
		if r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "picture", Arguments: map[string]any{}}); err != nil || r.IsError {
			t.Errorf("%s: %v %v", version, r, err)
		}
		dir := filepath.Join(t.TempDir(), "words-"+version)
		mustRun(t, axoCommand(t, env, "tool", "init", dir))
		mustRun(t, axoCommand(t, env, "tool", "add", dir))
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("%s: nobody said that the tools have changed", version)
		}
	}

	names := func(key string) (out []string) {
		t.Helper()
		l, err := httpSession(t, base+"/mcp", key, "", nil).ListTools(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range l.Tools {
			out = append(out, x.Name)
		}
		return out
	}
	if got := names(keys[0]); !slices.Contains(got, "picture") || !slices.Contains(got, "run_python") {
		t.Errorf("one sees %v", got)
	}
	if got := names(keys[1]); slices.Contains(got, "picture") || slices.Contains(got, "run_python") || !slices.Contains(got, "run_shell") {
		t.Errorf("two sees %v", got)
	}
	two := httpSession(t, base+"/mcp", keys[1], "", nil)
	for _, name := range []string{"picture", "run_python"} {
		if r, err := two.CallTool(t.Context(), &sdk.CallToolParams{Name: name, Arguments: map[string]any{"code": "1"}}); err == nil || !strings.Contains(err.Error(), "unknown tool") {
			t.Errorf("%s: %v %v", name, r, err)
		}
	}
	plain := func(key, method, path, body string) (status int, tools []any) {
		t.Helper()
		r, err := http.NewRequest(method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := bearer{key}.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var out struct{ Tools []any }
		if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
			t.Error(err)
		}
		return res.StatusCode, out.Tools
	}
	// words-... is Python's, too.
	if _, tools := plain(keys[0], "GET", "/v1/tools", ""); len(tools) != 3 {
		t.Errorf("one sees %v", tools)
	}
	if _, tools := plain(keys[1], "GET", "/v1/tools", ""); len(tools) != 0 {
		t.Errorf("two sees %v", tools)
	}
	for key, want := range map[string]int{keys[0]: 200, keys[1]: 404} {
		if got, _ := plain(key, "POST", "/v1/tools/picture/calls", `{"input":{}}`); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
}

// TestMCPConformance runs the protocol's own suite against the daemon, with tools as
// its scenarios want them. Those that it has to fail are in a list, with reasons; one
// of them that passes is a failure, too.
func TestMCPConformance(t *testing.T) {
	suite := testprog.MCP(t, "conformance")
	env := mcpEnv(t)
	tools, err := filepath.Glob("testdata/conformance/*/tool.toml")
	if err != nil || len(tools) == 0 {
		t.Fatal(err)
	}
	mustRun(t, axoCommand(t, env, append([]string{"tool", "add"}, tools...)...))
	key := addKeys(t, env, "suite")[0]
	daemon, err := url.Parse(serveHTTP(t, env))
	if err != nil {
		t.Fatal(err)
	}
	// The suite has no keys, so one is put into its requests on their way. All else,
	// Host and Origin too, stays.
	front := httptest.NewServer(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(daemon)
		r.Out.Host = r.In.Host
		r.Out.Header.Set("Authorization", "Bearer "+key)
	}})
	defer front.Close()
	expected, err := filepath.Abs("testdata/conformance/expected.yml")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", suite, "server", "--suite", "all", "--expected-failures", expected, "--url", front.URL+"/mcp")
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
