package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/internal/testprog"
)

// as runs axo with arguments as a user, 0 for this one, with more environment.
func (h *host) as(t *testing.T, uid uint32, stdin string, env []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(h.dir, "axo"), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	if uid != 0 {
		cmd.Dir = "/"
		cmd.Env = append(cmd.Env, "HOME=/nonexistent", "XDG_CONFIG_HOME=")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// TestRunThroughDaemon: a run goes through the daemon that is there, with input, output
// and status as without it; what is of this host, or runs without isolation, does not.
func TestRunThroughDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	d := h.serve(t, "")
	run := func(stdin string, args ...string) (string, string, int) {
		t.Helper()
		return h.as(t, 0, stdin, nil, append([]string{"run", "--state-dir", h.state}, args...)...)
	}
	out, said, status := run("input\n", "--shell", "cat; echo err >&2; exit 3")
	if out != "input\n" || said != "err\n" || status != 3 {
		t.Errorf("%q %q %d", out, said, status)
	}
	var res struct {
		ID       string
		Stdout   string
		Engine   string
		Decision struct {
			Engine   string
			Enforced []any
		}
	}
	seen := func(args ...string) bool {
		t.Helper()
		res.ID = ""
		out, said, _ := run("", append([]string{"--json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &res); err != nil {
			t.Fatalf("%v: %s %s", err, out, said)
		}
		if err := d.Process.Signal(syscall.Signal(0)); err != nil {
			t.Fatalf("the daemon has ended: %s", d.log)
		}
		return d.toldOf(res.ID)
	}
	if !seen("--memory", "64M", "--shell", "echo hi") || res.Stdout != "hi\n" || res.Decision.Engine != res.Engine || len(res.Decision.Enforced) != 1 {
		t.Errorf("it did not go through the daemon: %+v", res)
	}
	if !seen(testprog.Wat(t, "tiny")) || res.Stdout != "tiny\n" {
		t.Errorf("a module: %+v", res)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "file"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, own := range [][]string{
		{"--local", "--shell", "true"}, {"--native", "--", "true"}, {"--dir", h.dir + ":/d:ro", "--shell", "cat /d/file"},
		{"--copy-in", h.dir + "/file:/tmp/f", "--shell", "cat /tmp/f"}, {"--allow-engines", "builtin", "--shell", "true"},
	} {
		if seen(own...) {
			t.Errorf("%v went through the daemon", own)
		}
	}
	_, said, status = run("", "--tier", "microvm", "--engine", "builtin", "--", "true")
	if status != 126 || !strings.Contains(said, "no engine of this name") {
		t.Errorf("a refusal: %d %q", status, said)
	}
	if out, said, status = run("", "--timeout", "1500ms", "--shell", "echo out; sleep 60"); out != "out\n" || status != 124 || !strings.Contains(said, "timeout_wall") {
		t.Errorf("a limit: %q %q %d", out, said, status)
	}
	if list := h.must(t, "ps"); strings.Count(list, "\n") != 1 {
		t.Errorf("left:\n%s", list)
	}
	// Without it all goes on as before.
	if err := d.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	if out, said, status = run("", "--shell", "echo alone"); out != "alone\n" || status != 0 {
		t.Errorf("without a daemon: %q %q %d", out, said, status)
	}
}

// toldOf reports whether the daemon has told of a sandbox.
func (d *daemon) toldOf(id string) bool {
	return id != "" && strings.Contains(d.log.String(), "sandbox="+id)
}

// TestHostileLocalUser: another user of this host gets nothing from a daemon that he has
// no key to, nothing of its user's with a key, and nobody to talk to a daemon of his.
func TestHostileLocalUser(t *testing.T) {
	t.Parallel()
	testprog.Root(t, "becomes another user")
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	const nobody = 65534
	for dir := h.dir; dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&1 == 0 {
			if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil { // of a directory of this test's
				t.Fatal(err)
			}
		}
	}
	d := h.serve(t, "", "--listen", "127.0.0.1:0")
	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(d.log.String())
	secret := filepath.Join(h.dir, "secret")
	if err := os.WriteFile(secret, []byte("of-root"), 0o600); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(h.dir, "theirs")
	if err := errors.Join(os.Mkdir(own, 0o700), os.Chown(own, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	socket := "AXO_ADDRESS=unix://" + server.SocketPath(h.state)
	tcp := "AXO_ADDRESS=" + address
	state := "AXO_STATE_DIR=" + own

	// Without a key: neither the socket, nor the address, nor the token.
	wrong := "AXO_API_KEY=e2b_" + strings.Repeat("0", 40)
	for _, c := range []struct {
		env []string
		why string
	}{{[]string{state, socket, wrong}, "permission denied"}, {[]string{state, tcp, wrong}, "not known"}, {[]string{state, tcp}, "no key"}} {
		for _, args := range [][]string{{"run", "--shell", "echo ran"}, {"ps"}, {"create"}} {
			if out, said, status := h.as(t, nobody, "", c.env, args...); status == 0 || out != "" || !strings.Contains(said, c.why) {
				t.Errorf("%v %v: %q %q %d, want %s", c.env, args, out, said, status, c.why)
			}
		}
	}
	if _, said, status := h.as(t, nobody, "", nil, "ps", "--state-dir", h.state); status == 0 || strings.Contains(said, "e2b_") {
		t.Errorf("the daemon's own directory: %q", said)
	}

	// With a key of a user's: what runs, runs in a sandbox, and what is of the host is
	// his own.
	key, err := h.do("key", "add", "user")
	if err != nil {
		t.Fatal(key, err)
	}
	env := []string{state, tcp, "AXO_API_KEY=" + strings.TrimSpace(key)}
	if out, said, status := h.as(t, nobody, "", env, "run", "--shell", "cat "+secret); status == 0 || strings.Contains(out, "of-root") {
		t.Errorf("%q %q %d", out, said, status)
	}
	if out, said, status := h.as(t, nobody, "", env, "run", "--shell", "echo ran"); status != 0 || out != "ran\n" {
		t.Errorf("with a key: %q %q %d", out, said, status)
	}
	if out, said, status := h.as(t, nobody, "", env, "run", "--native", "--", "id", "-u"); status != 0 || out != "65534\n" {
		t.Errorf("without isolation he is not himself: %q %q %d", out, said, status)
	}
	for _, args := range [][]string{
		{"--dir", h.dir + ":/d:ro", "--shell", "cat /d/secret"}, {"--copy-in", secret + ":/tmp/s", "--shell", "cat /tmp/s"},
		{"--root", "/", "--", "/bin/cat", secret}, {"--tier", "none", "--native", "--", "cat", secret},
	} {
		if out, said, status := h.as(t, nobody, "", env, append([]string{"run"}, args...)...); status == 0 || strings.Contains(out+said, "of-root") {
			t.Errorf("%v: %q %q %d", args, out, said, status)
		}
	}
	for _, body := range []string{
		`{"spec":{"requirement":"NativeTrusted"},"process":{"args":["id"]}}`,
		`{"spec":{"requirement":"Arbitrary","mounts":[{"source":"/","destination":"/x"}]},"process":{"args":["id"]}}`,
		`{"spec":{"requirement":"Arbitrary","root":{"path":"/"}},"process":{"args":["id"]}}`,
		`{"spec":{"requirement":"WasmCompiled","module":{"path":"` + secret + `"}},"process":{"args":["id"]}}`,
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", address+"/v1/runs", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", strings.TrimSpace(key))
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", body, resp.Status)
		}
	}

	// A daemon of his own, where this user looks for one: nothing is sent to it.
	trap := filepath.Join(h.dir, "trap")
	if err := errors.Join(os.Mkdir(trap, 0o777), os.Chmod(trap, 0o777)); err != nil {
		t.Fatal(err)
	}
	_, _, _ = h.as(t, nobody, "", nil, "key", "ls", "--state-dir", trap) // a token that fits
	l, err := listenAs(nobody, server.SocketPath(trap))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				close(got)
				return
			}
			buf := make([]byte, 1)
			n, _ := conn.Read(buf)
			got <- string(buf[:n])
			conn.Close()
		}
	}()
	if err := errors.Join(os.WriteFile(filepath.Join(trap, "token"), []byte("e2b_"+strings.Repeat("0", 40)+"\n"), 0o644), os.Chown(trap, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	out, said, status := h.as(t, 0, "my input", nil, "run", "--state-dir", trap, "--shell", "cat")
	if out != "my input" || status != 0 {
		t.Errorf("%q %q %d", out, said, status)
	}
	l.Close()
	asked := 0
	for first := range got {
		asked++
		if first != "" {
			t.Error("something was sent to a daemon of another user's")
		}
	}
	if asked == 0 {
		t.Error("the trap was not looked at")
	}
	// What stands ready goes with it.
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	eventually(t, "its control groups to go", func() bool { return len(h.groups(t, d.Process.Pid)) == 0 })
}

// listenAs makes a socket on which another user listens.
func listenAs(uid int, path string) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	made := make(chan result)
	go func() {
		// The thread is another user's from here on, and ends with this goroutine.
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			made <- result{nil, errno}
			return
		}
		l, err := net.Listen("unix", path)
		made <- result{l, err}
	}()
	r := <-made
	return r.l, r.err
}
