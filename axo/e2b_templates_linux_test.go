package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// E2B's own clients, unchanged, build templates, and have sandboxes of them, as docs/E2B.md
// says. AXO_UPDATE=1 writes its table anew, of what was done.
func TestE2BTemplates(t *testing.T) {
	testprog.Root(t, "profile session takes a range of user ids")
	clients := testprog.E2B(t)
	h := newHost(t)
	guest := testprog.Guest(t)
	t.Setenv("AXO_GUEST_PATH", guest)
	if !haveContainers(t, nil) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	if err := os.MkdirAll(h.state, 0o700); err != nil {
		t.Fatal(err)
	}
	testprog.Base(t, h.state)
	machines := true
	if err := testvm.Try(h.state, guest); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Logf("SKIPPED, NOT PROVED: virtual machines: %v", err)
		machines = false
	}
	url, daemon := h.serveTemplates(t)
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
		{"npm `e2b` 2.51.0", exec.Command("node", filepath.Join(checks, "templates.mjs"), filepath.Join(clients, "js"))},
		{"PyPI `e2b` 2.63.0", exec.Command("python3", filepath.Join(checks, "templates.py"), filepath.Join(clients, "py"))},
	} {
		fmt.Fprintf(&table, "\n| templates with %s | |\n|---|---|\n", c.name)
		c.cmd.Env = append(os.Environ(), "E2B_API_KEY="+strings.TrimSpace(string(key)), "E2B_API_URL="+url, "E2B_SANDBOX_URL="+url, "OTHER_KEY="+strings.TrimSpace(other))
		if machines {
			c.cmd.Env = append(c.cmd.Env, "WITH_MICROVM=1")
		}
		var said bytes.Buffer
		c.cmd.Stderr = &said
		out, err := c.cmd.Output()
		if err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, said.Bytes())
		}
		for line := range strings.Lines(string(out)) {
			r := struct{ Name, Tier, Error string }{}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%s: %q: %v", c.name, line, err)
			}
			if r.Error != "" {
				t.Errorf("%s: %s: %s", c.name, r.Name, r.Error)
			}
			fmt.Fprintf(&table, "| %s | %s |\n", r.Name, r.Tier)
		}
	}
	t.Run("of a Dockerfile", h.dockerfile)
	t.Run("killed while it builds", func(t *testing.T) { h.killedWhileItBuilds(t, url, strings.TrimSpace(string(key)), daemon) })
	if t.Failed() || !machines {
		return
	}
	isDocumented(t, table.String(), "<!-- made by TestE2BTemplates -->\n", "\n<!-- end of templates -->")
}

// dockerfile builds an image of a file, and runs it.
func (h *host) dockerfile(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	for name, text := range map[string]string{
		"Dockerfile":    "FROM base\nENV GREETING=hello\nWORKDIR /srv/app\nCOPY --chmod=755 *.sh lib ./\nRUN [\"sh\", \"-c\", \"id -u > who; echo told\"]\nUSER user\nCMD ./main.sh\n",
		"main.sh":       "#!/bin/sh\necho \"$GREETING $(id -un) $(cat who) $(ls)\"\n",
		"lib/kept":      "",
		"lib/left-out":  "",
		"other":         "",
		".dockerignore": "**/left-*\n",
		"bad":           "FROM base\nRUN true\nADD x y\n",
		"fails":         "FROM base\nRUN echo why; exit 5\n",
	} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if said := h.must(t, "template", "build", "--file", filepath.Join(dir, "Dockerfile"), "mine"); !strings.Contains(said, "told") {
		t.Errorf("%s", said)
	}
	if said := h.must(t, "template", "build", "--file", filepath.Join(dir, "Dockerfile"), "mine"); strings.Count(said, "CACHED") != 4 {
		t.Errorf("it is built again: %s", said)
	}
	out, err := h.axo("--image", "mine", "--tier", "oci", "--profile", "session", "--", "./main.sh").CombinedOutput()
	if err != nil || string(out) != "hello user 1000 kept\nmain.sh\nwho\n" {
		t.Errorf("%v %q", err, out)
	}
	for file, want := range map[string]string{"bad": "line 3: ADD is not done here", "fails": "exited with status 5"} {
		if said, err := h.do("template", "build", "--file", filepath.Join(dir, file), "not"); err == nil || !strings.Contains(said, want) {
			t.Errorf("%s: %v %s", file, err, said)
		}
	}
	if images := h.must(t, "image", "ls"); !strings.Contains(images, "mine") || strings.Contains(images, "axo.local/") || strings.Contains(images, "/not:") {
		t.Errorf("%s", images)
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "axo-build-*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// serveTemplates starts a daemon that answers E2B's clients, and returns where.
func (h *host) serveTemplates(t *testing.T) (string, *exec.Cmd) {
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
			return "http" + url, cmd
		}
	}
	t.Fatal("the daemon is not ready")
	return "", nil
}

// killedWhileItBuilds kills the daemon in the middle of a build: the next one says so, and
// has nothing of it.
func (h *host) killedWhileItBuilds(t *testing.T, url, key string, daemon *exec.Cmd) {
	call := func(url, method, path, body string, out any) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-API-Key", key)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if out != nil {
			if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
				t.Fatal(err)
			}
		}
		return resp.StatusCode
	}
	var b struct{ TemplateID, BuildID string }
	if code := call(url, "POST", "/v3/templates", `{"name":"killed"}`, &b); code != http.StatusAccepted {
		t.Fatal(code)
	}
	path := "/templates/" + b.TemplateID + "/builds/" + b.BuildID
	if code := call(url, "POST", "/v2"+path, `{"fromTemplate":"base","steps":[{"type":"RUN","args":["echo begun; exec sleep 86397"]}]}`, nil); code != http.StatusAccepted {
		t.Fatal(code)
	}
	type status struct {
		Status string
		Logs   []string
		Reason struct{ Message string }
	}
	eventually(t, "the step to begin", func() bool {
		var s status
		call(url, "GET", path+"/status", "", &s)
		return strings.Contains(strings.Join(s.Logs, "\n"), "begun")
	})
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // it was killed
	next, _ := h.serveTemplates(t)
	var s status
	call(next, "GET", path+"/status", "", &s)
	if s.Status != "error" || !strings.Contains(s.Reason.Message, "the daemon ended") {
		t.Errorf("%+v", s)
	}
	eventually(t, "the step's program to be gone", func() bool {
		out, err := exec.Command("pgrep", "-f", "^sleep 86397$").Output()
		return err != nil && len(out) == 0
	})
	if images := h.must(t, "image", "ls", "--all"); strings.Contains(images, b.BuildID) {
		t.Errorf("an image of it is there:\n%s", images)
	}
	var made struct{ Message string }
	if code := call(next, "POST", "/sandboxes", `{"templateID":"killed"}`, &made); code != http.StatusNotFound || !strings.Contains(made.Message, "not built") {
		t.Errorf("a sandbox of it: %d %s", code, made.Message)
	}
}
