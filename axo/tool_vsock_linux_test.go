package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// TestToolByVsock: a tool is called in a virtual machine whose guest is behind
// Firecracker's vsock socket, from the command line and by MCP: input, output, a result
// file and progress go that way. What takes Firecracker's place is package standin.
func TestToolByVsock(t *testing.T) {
	testprog.Root(t, "jails a VMM as the user nobody, with a root of its own")
	h := newHost(t, "standin")
	guest := testprog.Guest(t)
	testvm.Link(t, h.state, guest) // for the kernel; Firecracker's templates are beside QEMU's
	if err := testprog.BuildPackage(filepath.Join(h.dir, "firecracker"), "driver/microvm/internal/standin"); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "AXO_GUEST_PATH="+guest, "AXO_FIRECRACKER_PATH="+filepath.Join(h.dir, "firecracker"), "AXO_STATE_DIR="+h.state)
	axo := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(h.dir, "axo"), args...)
		cmd.Env = env
		return cmd
	}
	// A small root: the template is there in seconds.
	root := filepath.Join(h.dir, "root")
	untar := exec.Command("tar", "-x", "-C", root)
	untar.Stdin = bytes.NewReader(testprog.RootFS(t))
	tool := filepath.Join(h.dir, "measure")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(tool, 0o755), os.WriteFile(filepath.Join(tool, "tool.toml"), []byte(`name = "measure"
version = "1"
description = "Counts the bytes of a text, and keeps a copy of it."
engine = "firecracker"
allow_emulated = true
[entrypoint]
source = "main.sh"
language = "sh"
[limits]
memory = "128M"
pids = 16
[input]
type = "object"
required = ["text"]
properties.text = { type = "string" }
[output]
type = "object"
required = ["bytes", "vmm"]
[[files.out]]
path = "/tmp/copy.txt"
`), 0o600), os.WriteFile(filepath.Join(tool, "main.sh"), []byte(`cat >/tmp/copy.txt
echo '{"progress": 1, "total": 1, "message": "counted"}' >&2
echo "{\"bytes\": $(wc -c </tmp/copy.txt), \"vmm\": \"$(uname -r)\"}"
`), 0o600)); err != nil {
		t.Fatal(err)
	}
	mustRun(t, untar)
	mustRun(t, axo("template", "build", "-q", "--engine", "firecracker", "--rootfs", root))
	mustRun(t, axo("tool", "add", tool))

	// More than one frame of the guest's channel, each way.
	input := `{"text":"` + strings.Repeat("a", 3<<20) + `"}`
	in, out := filepath.Join(h.dir, "input"), filepath.Join(h.dir, "out")
	if err := errors.Join(os.WriteFile(in, []byte(input), 0o600), os.Mkdir(out, 0o700)); err != nil {
		t.Fatal(err)
	}
	var res struct {
		Failure *struct{ Message string }
		Output  struct {
			Bytes int
			VMM   string
		}
		Artifacts []struct{ Path string }
		Run       struct {
			Tier, Engine string
			Emulated     bool
		}
	}
	if err := json.Unmarshal([]byte(mustRun(t, axo("tool", "call", "--json", "--out", out, "measure", "@"+in))), &res); err != nil {
		t.Fatal(err)
	}
	if res.Failure != nil || res.Output.Bytes != len(input) || len(res.Artifacts) != 1 || res.Run.Tier != "microvm" || res.Run.Engine != "firecracker" {
		t.Fatalf("%+v, want %d bytes", res, len(input))
	}
	if b, err := os.ReadFile(res.Artifacts[0].Path); err != nil || string(b) != input {
		t.Errorf("the copy has %d bytes, want %d: %v", len(b), len(input), err)
	}
	if host, err := os.ReadFile("/proc/sys/kernel/osrelease"); err != nil || strings.TrimSpace(string(host)) == res.Output.VMM {
		t.Errorf("it ran on the host's kernel %q: %v", res.Output.VMM, err)
	}

	s := mcpSession(t, axo("mcp", "serve", "--tools-only"), nil)
	r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "measure", Arguments: map[string]any{"text": "over MCP"}})
	if err != nil || r.IsError {
		t.Fatalf("%v %v", err, r)
	}
	if b, _ := json.Marshal(r.StructuredContent); !strings.Contains(string(b), `"bytes":19`) {
		t.Errorf("%s", b)
	}
	// A call that fails is the tool's failure, with its words.
	r, err = s.CallTool(t.Context(), &sdk.CallToolParams{Name: "measure", Arguments: map[string]any{"text": 1}})
	if err != nil || !r.IsError || !strings.Contains(text(r), "text") {
		t.Errorf("%v %v", err, r)
	}
}
