package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation/axo/base"
	"github.com/axocoatl/isolation/internal/testprog"
)

// The image base has what E2B's clients and agents' code expect; its user may do
// anything in his sandbox, and nothing outside; and it is not made twice.
func TestSetupBase(t *testing.T) {
	testprog.Root(t, "profile session takes a range of user ids")
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + filepath.Join(h.dir, "axo-guest")}) {
		t.Skip("SKIPPED, NOT PROVED: this host has no containers")
	}
	if err := os.MkdirAll(h.state, 0o700); err != nil {
		t.Fatal(err)
	}
	testprog.Base(t, h.state)
	out, err := h.do("setup", "base", "--json", "-q")
	if err != nil {
		t.Fatal(err, out)
	}
	var r base.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Made || r.Image.Config.User != "user" || r.Suite != base.DefaultSuite {
		t.Errorf("%+v", r)
	}
	const script = `set -e
id -un; id -u; pwd; echo $HOME
python --version; python3 -c 'import ssl, venv'; pip --version; git --version; curl --version
test -s /etc/ssl/certs/ca-certificates.crt
command -v ss pgrep >/dev/null
sudo -n id -un
sudo -n sh -c 'echo root > /usr/made && chown user /usr/made'
cat /usr/made
sudo -n grep NoNewPrivs /proc/self/status
! sudo -n mknod /tmp/disk b 8 0 2>/dev/null || ! sudo -n head -c1 /tmp/disk 2>/dev/null
! sudo -n sh -c 'echo 1 > /proc/sys/kernel/panic' 2>/dev/null
! sudo -n kill -9 1 2>/dev/null
echo safe`
	said, err := h.axo("--tier", "oci", "--profile", "session", "--image", "base", "--entrypoint", "/bin/bash", "--", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	for i, want := range []string{"user", "1000", "/home/user", "/home/user", "Python 3"} {
		if !strings.HasPrefix(lines[i], want) {
			t.Errorf("line %d is %q, want %q", i, lines[i], want)
		}
	}
	if !strings.HasSuffix(string(said), "\nroot\nroot\nNoNewPrivs:\t0\nsafe\n") {
		t.Errorf("%s", said)
	}
	for _, bad := range [][]string{{"--suite", "../x"}, {"--package", "-x"}, {"--mirror", "file:///etc"}, {"--mode", "chrootless"}} {
		if out, err := h.do(append([]string{"setup", "base"}, bad...)...); err == nil {
			t.Errorf("%q is taken: %s", bad, out)
		}
	}
}
