package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/internal/testprog"
)

// serveE2B starts a daemon that answers E2B's clients, and returns where.
func (h *host) serveE2B(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(h.dir, "axo"), "serve", "--state-dir", h.state, "--e2b", "127.0.0.1:0")
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // how it ended does not matter here
		if t.Failed() {
			t.Logf("the daemon: %s", log.Bytes())
		}
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if url, ok := strings.CutPrefix(lines.Text(), "ready: http"); ok {
			return "http" + url
		}
	}
	t.Fatal("the daemon is not ready")
	return ""
}

// e2bRow is what a client did.
type e2bRow struct {
	Name  string `json:"name"`
	Error string `json:"error"`
}

// E2B's own clients, unchanged, do with a daemon what docs/E2B.md says. AXO_UPDATE=1
// writes its table anew, of what was done.
func TestE2BClients(t *testing.T) {
	clients := testprog.E2B(t)
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	url := h.serveE2B(t)
	key, err := os.ReadFile(tenant.TokenPath(h.state))
	if err != nil {
		t.Fatal(err)
	}
	other, err := h.do("key", "add", "other")
	if err != nil {
		t.Fatal(err, other)
	}
	checks, err := filepath.Abs("server/e2b/testdata/clients")
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	for _, c := range []struct {
		name string
		cmd  *exec.Cmd
	}{
		{"npm `e2b` 2.51.0", exec.Command("node", filepath.Join(checks, "check.mjs"), filepath.Join(clients, "js"))},
		{"PyPI `e2b` 2.63.0", exec.Command("python3", filepath.Join(checks, "check.py"), filepath.Join(clients, "py"))},
	} {
		fmt.Fprintf(&table, "\n| %s | |\n|---|---|\n", c.name)
		c.cmd.Env = append(os.Environ(), "E2B_API_KEY="+strings.TrimSpace(string(key)), "E2B_API_URL="+url, "E2B_SANDBOX_URL="+url, "OTHER_KEY="+strings.TrimSpace(other))
		var said bytes.Buffer
		c.cmd.Stderr = &said
		out, err := c.cmd.Output()
		if err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, said.Bytes())
		}
		for line := range strings.Lines(string(out)) {
			var r e2bRow
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%s: %q: %v", c.name, line, err)
			}
			if r.Error != "" {
				t.Errorf("%s: %s: %s", c.name, r.Name, r.Error)
			}
			fmt.Fprintf(&table, "| %s | oci |\n", r.Name)
		}
	}
	if t.Failed() {
		return
	}
	const file, begin, end = "../docs/E2B.md", "<!-- made by TestE2BClients -->\n", "\n<!-- end -->"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	want := before + begin + table.String() + end + after
	if os.Getenv("AXO_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(b) {
		t.Errorf("%s is not what was done: AXO_UPDATE=1 go test -run TestE2BClients .", file)
	}
}
