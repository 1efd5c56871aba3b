package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// aServerOfShell is a server of MCP that runs what it is told to, as its user.
const aServerOfShell = `import json, subprocess, sys
print("this is no message", flush=True)
for line in sys.stdin:
    m = json.loads(line)
    if "id" not in m:
        continue
    if m["method"] == "initialize":
        r = {"protocolVersion": m["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "shell", "version": "1"}}
    elif m["method"] == "tools/list":
        r = {"tools": [{"name": "shell", "inputSchema": {"type": "object"}}]}
    elif m["method"] == "tools/call":
        a = m["params"]["arguments"]
        if "eat" in a:
            hold = bytearray(a["eat"])
            hold[::4096] = b"x" * len(hold[::4096])
        p = subprocess.run(a["run"], shell=True, capture_output=True, text=True)
        r = {"content": [{"type": "text", "text": p.stdout + p.stderr}], "isError": p.returncode != 0}
    else:
        print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "error": {"code": -32601, "message": "no such method"}}), flush=True)
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": r}), flush=True)
`

// TestMCPWrapInMachine: a server of MCP runs in a virtual machine, from a directory that
// is copied into it, and within limits; its client speaks with it as if it were here.
func TestMCPWrapInMachine(t *testing.T) {
	env := append(mcpEnv(t), "SECRET_OF_THE_HOST=canary")
	var state string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "AXO_STATE_DIR="); ok {
			state = v
		}
	}
	guest := testprog.Guest(t)
	testvm.Link(t, state, guest)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "server.py"), []byte(aServerOfShell), 0o644); err != nil {
		t.Fatal(err)
	}
	wrap := []string{"mcp", "wrap", "--tier", "microvm", "--allow-emulated", "--memory", "200M", "--pids", "20", "--disk", "16M", "--dir", dir + ":/srv/mcp:ro", "--", "python3", "/srv/mcp/server.py"}
	cmd := axoCommand(t, append(env, "AXO_GUEST_PATH="+guest), wrap...)
	var said bytes.Buffer
	cmd.Stderr = &said
	s, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), &sdk.CommandTransport{Command: cmd}, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	defer s.Close() //nolint:errcheck // its server dies
	if l, err := s.ListTools(t.Context(), nil); err != nil || len(l.Tools) != 1 || l.Tools[0].Name != "shell" {
		t.Fatalf("%v %v", l, err)
	}
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, run string
		want      func(string) bool
	}{
		{"another kernel", "uname -r", func(s string) bool { return s != string(host) && strings.Contains(s, ".") }},
		{"the directory", "ls /srv/mcp", func(s string) bool { return s == "server.py\n" }},
		{"is read-only", "touch /srv/mcp/new 2>&1; ls /srv/mcp", func(s string) bool { return strings.HasSuffix(s, "Read-only file system\nserver.py\n") }},
		{"nothing of the host's", "echo [$SECRET_OF_THE_HOST]; ls " + dir + " 2>&1", func(s string) bool { return strings.HasPrefix(s, "[]\n") && strings.Contains(s, "No such file") }},
		{"no network", "ls /sys/class/net", func(s string) bool { return s == "lo\n" }},
		{"an answer of 1 MiB", "head -c 1048576 /dev/zero | tr '\\0' x", func(s string) bool { return s == strings.Repeat("x", 1<<20) }},
		{"a limit of disk", "head -c 20000000 /dev/zero >/tmp/f 2>/dev/null || echo full; rm -f /tmp/f", func(s string) bool { return s == "full\n" }},
		// The last: these stay. The shell ends where it cannot fork.
		{"a limit of processes", "while :; do sleep 1000 >/dev/null 2>&1 & done", func(s string) bool { return strings.Contains(s, "fork") }},
	} {
		r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "shell", Arguments: map[string]any{"run": c.run}})
		if err != nil {
			t.Fatalf("%s: %v\n%s", c.name, err, said.String())
		}
		if got := text(r); !c.want(got) {
			t.Errorf("%s: %.200q", c.name, got)
		}
	}
	// A server that takes more memory than it may is ended; that is said, and its
	// client has an error and no answer.
	if r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "shell", Arguments: map[string]any{"run": "true", "eat": 300 << 20}}); err == nil {
		t.Errorf("it lives: %v", r)
	}
	_ = s.Close() // it waits for axo
	if got := said.String(); !strings.Contains(got, "this is no message") || !strings.Contains(got, "memory") {
		t.Errorf("%s", got)
	}
}
