package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// serveE2B starts a daemon that answers E2B's clients, and returns where.
func (h *host) serveE2B(t *testing.T, args ...string) string {
	t.Helper()
	if !slices.Contains(args, "--e2b") {
		args = append(args, "--e2b", "127.0.0.1:0")
	}
	cmd := exec.Command(filepath.Join(h.dir, "axo"), append([]string{"serve", "--state-dir", h.state}, args...)...)
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
	t.Fatalf("the daemon is not ready: %s", log.Bytes())
	return ""
}

// e2bRow is what a client did.
type e2bRow struct {
	Name  string `json:"name"`
	Error string `json:"error"`
}

// e2bTable is what clients did, by their name, in order, with the tiers that it was done on.
type e2bTable struct {
	heads []string
	names map[string][]string
	tiers map[[2]string][]string // by head and name
}

func (e *e2bTable) add(head, name, tier string) {
	if !slices.Contains(e.heads, head) {
		e.heads = append(e.heads, head)
	}
	if len(e.tiers[[2]string{head, name}]) == 0 {
		e.names[head] = append(e.names[head], name)
	}
	e.tiers[[2]string{head, name}] = append(e.tiers[[2]string{head, name}], tier)
}

func (e *e2bTable) String() string {
	var b strings.Builder
	for _, head := range e.heads {
		fmt.Fprintf(&b, "\n| %s | |\n|---|---|\n", head)
		for _, name := range e.names[head] {
			fmt.Fprintf(&b, "| %s | %s |\n", name, strings.Join(e.tiers[[2]string{head, name}], ", "))
		}
	}
	return b.String()
}

// run has a script use a daemon, and adds what it did.
func (e *e2bTable) run(t *testing.T, head, tier string, env []string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(append(os.Environ(), "AXO_TIER="+tier), env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%s, %s: %v\n%s", head, tier, err, said.Bytes())
	}
	for line := range strings.Lines(string(out)) {
		var r e2bRow
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %q: %v", head, line, err)
		}
		if r.Error != "" {
			t.Errorf("%s, %s: %s: %s", head, tier, r.Name, r.Error)
		}
		e.add(head, r.Name, tier)
	}
}

// freePort is a port that nobody listened on a moment ago: a name that clients are told
// has it in it before anybody does.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// E2B's own clients, unchanged, do with a daemon what docs/E2B.md says. AXO_UPDATE=1
// writes its table anew, of what was done.
func TestE2BClients(t *testing.T) {
	clients := testprog.E2B(t)
	h := newHost(t)
	guest := testprog.Guest(t) // with which the template of machines was made
	t.Setenv("AXO_GUEST_PATH", guest)
	if !haveContainers(t, nil) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	testvm.Link(t, h.state, guest)
	url := h.serveE2B(t)
	other, small := strings.TrimSpace(h.must(t, "key", "add", "other")), strings.TrimSpace(h.must(t, "key", "add", "small"))
	h.must(t, "key", "quota", "small", "--sandboxes", "5")
	checks, err := filepath.Abs("server/e2b/testdata/clients")
	if err != nil {
		t.Fatal(err)
	}
	script := func(name string) []string {
		if strings.HasSuffix(name, ".py") {
			return []string{"python3", filepath.Join(checks, name), filepath.Join(clients, "py")}
		}
		return []string{"node", filepath.Join(checks, name), filepath.Join(clients, "js")}
	}
	const js, py = "npm `e2b` 2.51.0", "PyPI `e2b` 2.63.0"
	table := &e2bTable{names: map[string][]string{}, tiers: map[[2]string][]string{}}
	env := []string{"E2B_API_KEY=" + h.token(t), "E2B_API_URL=" + url, "E2B_SANDBOX_URL=" + url, "OTHER_KEY=" + other, "SMALL_KEY=" + small, "AXO_STATE=" + h.state}
	for _, tier := range []string{"oci", "microvm"} {
		table.run(t, js, tier, env, script("check.mjs")...)
		table.run(t, py, tier, env, script("check.py")...)
	}
	table.run(t, "`@e2b/cli` 2.19.0, `@computesdk/e2b` 1.7.52, and many at once", "oci", env, script("more.mjs")...)

	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Giant", strings.Repeat("x", 100<<10))
	if resp, err := http.DefaultClient.Do(r); err != nil {
		t.Error(err)
	} else if resp.Body.Close(); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a giant header: %s", resp.Status)
	}

	private := &host{dir: h.dir, state: filepath.Join(t.TempDir(), "state")}
	if err := os.Mkdir(private.state, 0o700); err != nil {
		t.Fatal(err)
	}
	testprog.Base(t, private.state)
	port := freePort(t)
	domain := "boxes.test:" + port
	url = private.serveE2B(t, "--e2b", "127.0.0.1:"+port, "--e2b-domain", domain, "--e2b-tls", "self")
	authority := filepath.Join(private.state, "e2b-ca.pem")
	env = []string{"E2B_API_KEY=" + private.token(t), "SSL_CERT_FILE=" + authority, "NODE_EXTRA_CA_CERTS=" + authority}
	table.run(t, js, "oci", append(env, "E2B_DOMAIN="+domain), script("tls.mjs")...)
	table.run(t, py, "oci", append(env, "E2B_API_URL="+url, "E2B_SANDBOX_URL="+url), script("tls.py")...)
	if t.Failed() {
		return
	}
	isDocumented(t, table.String(), "<!-- made by TestE2BClients -->\n", "\n<!-- end -->")
}

// isDocumented says that docs/E2B.md has a table between two marks. AXO_UPDATE=1 writes it there.
func isDocumented(t *testing.T, table, begin, end string) {
	t.Helper()
	const file = "../docs/E2B.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	want := before + begin + table + end + after
	if os.Getenv("AXO_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(b) {
		t.Errorf("%s is not what was done: AXO_UPDATE=1 go test -run %s .", file, t.Name())
	}
}

// token is the key of a host's daemon.
func (h *host) token(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(tenant.TokenPath(h.state))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
