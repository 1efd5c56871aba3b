package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation/internal/testprog"
)

// aNodeServer is what the registry of the test has as a package.
const aNodeServer = `#!/usr/bin/env node
const net = require("net");
const say = (id, result) => console.log(JSON.stringify({ jsonrpc: "2.0", id, result }));
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const m = JSON.parse(line);
  if (m.method === "initialize") {
    say(m.id, { protocolVersion: m.params.protocolVersion, capabilities: { tools: {} }, serverInfo: { name: "node", version: "1" } });
  } else if (m.method === "tools/list") {
    say(m.id, { tools: [{ name: "look", inputSchema: { type: "object" } }] });
  } else if (m.method === "tools/call") {
    // Around the proxy.
    const { host, port } = m.params.arguments;
    const c = net.connect(port, host);
    const end = (text) => say(m.id, { content: [{ type: "text", text: text + " " + (process.env.SECRET_OF_THE_HOST || "no secret") }] });
    c.on("connect", () => end("connected")).on("error", (e) => end(e.code));
  } else if (m.id !== undefined) {
    console.log(JSON.stringify({ jsonrpc: "2.0", id: m.id, error: { code: -32601, message: "no such method" } }));
  }
});
`

// aPythonServer is what the index of the test has as a wheel.
const aPythonServer = `import json, os, socket, sys
def main():
    for line in sys.stdin:
        m = json.loads(line)
        if m.get("method") == "initialize":
            r = {"protocolVersion": m["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "python", "version": "1"}}
        elif m.get("method") == "tools/list":
            r = {"tools": [{"name": "look", "inputSchema": {"type": "object"}}]}
        elif m.get("method") == "tools/call":
            a = m["params"]["arguments"]
            try:
                socket.create_connection((a["host"], a["port"]))
                said = "connected"
            except OSError as e:
                said = {101: "ENETUNREACH", 111: "ECONNREFUSED"}.get(e.errno, str(e))
            r = {"content": [{"type": "text", "text": said + " " + os.environ.get("SECRET_OF_THE_HOST", "no secret")}]}
        elif "id" in m:
            print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "error": {"code": -32601, "message": "no such method"}}), flush=True)
            continue
        else:
            continue
        print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": r}), flush=True)
`

// aPackage is the tarball of an npm package.
func aPackage(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, text := range map[string]string{
		"package/package.json": `{"name": "some-server", "version": "1.0.0", "bin": {"some-server": "server.js"}}`,
		"package/server.js":    aNodeServer,
	} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// aWheel is a package of Python's (PEP 427).
func aWheel(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	record := ""
	add := func(name, text string) {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text))
		record += fmt.Sprintf("%s,sha256=%s,%d\n", name, base64.RawURLEncoding.EncodeToString(sum[:]), len(text))
	}
	add("some_server.py", aPythonServer)
	add("some_server-1.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-server\nVersion: 1.0.0\n")
	add("some_server-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
	add("some_server-1.0.0.dist-info/entry_points.txt", "[console_scripts]\nsome-server = some_server:main\n")
	add("some_server-1.0.0.dist-info/RECORD", record+"some_server-1.0.0.dist-info/RECORD,,\n")
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// registries serve some-server as npm's and PyPI's registries do, on an address that
// is this host's alone, and none that goes around a proxy.
func registries(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.5:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	tarball, wheel := aPackage(t), aWheel(t)
	sum, wheelSum := sha512.Sum512(tarball), sha256.Sum256(wheel)
	mux := http.NewServeMux()
	mux.HandleFunc("/some-server", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"name": "some-server", "dist-tags": map[string]any{"latest": "1.0.0"},
			"versions": map[string]any{"1.0.0": map[string]any{
				"name": "some-server", "version": "1.0.0", "bin": map[string]any{"some-server": "server.js"},
				"dist": map[string]any{"tarball": "http://" + address + "/some-server-1.0.0.tgz", "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])},
			}},
		})
	})
	mux.HandleFunc("/some-server-1.0.0.tgz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tarball) })
	const file = "some_server-1.0.0-py3-none-any.whl"
	mux.HandleFunc("/simple/some-server/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<a href="/files/%s#sha256=%s">%s</a>`, file, hex.EncodeToString(wheelSum[:]), file)
	})
	mux.HandleFunc("/files/"+file, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wheel))
	})
	s := &http.Server{Handler: mux}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return address
}

// TestMCPWrapRunners: npx and uvx fetch a server through the proxy, from the registry
// that is allowed, and what they run has no other network.
func TestMCPWrapRunners(t *testing.T) {
	uvx := testprog.MCP(t, "uvx")
	testprog.MCP(t, "inspector") // node and npm are there
	env := append(mcpEnv(t), "SECRET_OF_THE_HOST=canary")
	address := registries(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	// What it may reach is said by a flag, or by a rule.
	rules := filepath.Join(t.TempDir(), "policy.toml")
	if err := os.WriteFile(rules, []byte("[[rule]]\nname = \"servers\"\nsources = [\"wrap\"]\nhosts = [\""+address+"\"]\ndirectories = [{ path = \"/\" }]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"npx by a rule": {"--allow-granted", "--policy", rules, "--env", "npm_config_registry=http://" + address + "/", "--", "npx", "-y", "some-server"},
		"npx":           {"--allow-host", address, "--env", "npm_config_registry=http://" + address + "/", "--", "npx", "-y", "some-server"},
		"uvx":           {"--allow-host", address, "--env", "UV_DEFAULT_INDEX=http://" + address + "/simple/", "--env", "UV_PYTHON_DOWNLOADS=never", "--dir", filepath.Dir(uvx) + ":/opt/uv:ro", "--", "/opt/uv/uvx", "some-server"},
	} {
		s := mcpSession(t, axoCommand(t, env, append([]string{"mcp", "wrap"}, args...)...), nil)
		l, err := s.ListTools(t.Context(), nil)
		if err != nil || len(l.Tools) != 1 || l.Tools[0].Name != "look" {
			t.Fatalf("%s: %v %v", name, l, err)
		}
		r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "look", Arguments: map[string]any{"host": host, "port": json.Number(port)}})
		// It has a loopback address of its own, and nobody listens there.
		if err != nil || text(r) != "ECONNREFUSED no secret" && text(r) != "ENETUNREACH no secret" {
			t.Errorf("%s: %v %v", name, text(r), err)
		}
	}
	// What is not allowed is not reached, and that is said.
	cmd := axoCommand(t, env, "mcp", "wrap", "--allow-host", "registry.example", "--env", "npm_config_registry=http://"+address+"/", "--env", "npm_config_fetch_retries=0", "--", "npx", "-y", "some-server")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "axo: network: "+address) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestMCPWrapPrepared: servers that are there already, in a directory, an image and a
// module, need no network and have none.
func TestMCPWrapPrepared(t *testing.T) {
	everything := testprog.MCP(t, "everything")
	env := mcpEnv(t)
	// A server of npm's, with the host's node.
	dir, program, ok := strings.Cut(everything, "/node_modules/")
	if !ok {
		t.Fatal(everything)
	}
	s := mcpSession(t, axoCommand(t, env, "mcp", "wrap", "--memory", "512M", "--pids", "64", "--dir", dir+":/srv/mcp:ro", "--", "node", "/srv/mcp/node_modules/"+program), nil)
	if l, err := s.ListTools(t.Context(), nil); err != nil || len(l.Tools) < 5 {
		t.Fatalf("%v %v", l, err)
	}
	if r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "echo", Arguments: map[string]any{"message": "hi"}}); err != nil || !strings.Contains(text(r), "hi") {
		t.Errorf("%v %v", text(r), err)
	}

	native, err := os.ReadFile(testprog.GoNative(t, "mcpserver"))
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(image, testprog.Tar(t, testprog.RootEntry{Header: tar.Header{Name: "server", Mode: 0o755}, Body: string(native)}), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, axoCommand(t, env, "image", "import", "-q", "--name", "adder:1", "--entrypoint", "/server", image))
	for name, args := range map[string][]string{
		"image": {"--image", "adder:1"}, "module": {testprog.Go(t, "mcpserver")}, "root": {"--root", rootOf(t, image), "--", "/server"},
	} {
		s := mcpSession(t, axoCommand(t, env, append([]string{"mcp", "wrap"}, args...)...), nil)
		if r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "add", Arguments: map[string]any{"a": 40, "b": 2}}); err != nil || text(r) != "42" {
			t.Errorf("%s: %v %v", name, r, err)
		}
	}
}

// rootOf is a directory with what an archive has.
func rootOf(t *testing.T, archive string) string {
	t.Helper()
	dir := t.TempDir()
	mustRun(t, exec.Command("tar", "-xf", archive, "-C", dir))
	return dir
}
