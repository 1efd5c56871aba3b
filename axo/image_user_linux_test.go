package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/axocoatl/isolation/internal/testprog"
)

// TestImageAsOrdinaryUser imports an image and runs it without any rights: the
// user is the image's inside, and himself outside.
func TestImageAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT PROVED: needs root, to become an ordinary user")
	}
	const uid = 61235
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := testprog.BuildCommands(dir, []string{"axo", "axo-guest"}); err != nil {
		t.Fatal(err)
	}
	home, rootDir, tarball := filepath.Join(dir, "home"), filepath.Join(dir, "root"), filepath.Join(dir, "root.tar")
	for _, d := range []string{home, rootDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, uid, uid); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tarball, testprog.RootFS(t), 0o644); err != nil {
		t.Fatal(err)
	}
	axo := func(args ...string) (string, string, error) {
		cmd := exec.Command(filepath.Join(dir, "axo"), append([]string{"--state-dir", filepath.Join(home, "state")}, args...)...)
		cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		return out.String(), errOut.String(), err
	}
	if out, errOut, err := axo("run", "--", "true"); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatalf("%v %s%s", err, out, errOut)
		}
		t.Skipf("SKIPPED, NOT PROVED: an ordinary user has no containers here: %s", errOut)
	}
	for _, c := range []struct {
		name string
		args []string
		out  string
		bad  string // in the error
	}{
		{"import", []string{"image", "import", "-q", "--name", "box", "--user", "app", "--workdir", "/home/app", tarball}, "sha256:", ""},
		{"run", []string{"run", "--image", "box", "--", "sh", "-c", "id; pwd; echo x > f && cat f; rm -rf /etc/group; ls /etc"}, "uid=77(app) gid=78(app)\n/home/app\nx\nhostname\nhosts\npasswd\nresolv.conf\n", ""},
		{"another user", []string{"run", "--image", "box", "--user", "0", "--", "id"}, "", "user"},
		{"import as root", []string{"image", "import", "-q", "--name", "root", tarball}, "sha256:", ""},
		{"run as its root", []string{"run", "--image", "root", "--", "sh", "-c", "id -u; stat -c %u /bin /home/app"}, "0\n0\n0\n", ""},
		{"import with a user that is not there", []string{"image", "import", "-q", "--name", "who", "--user", "who", tarball}, "sha256:", ""},
		{"run with a user that is not there", []string{"run", "--image", "who", "--", "id"}, "", "numeric user"},
		{"a root of another's", []string{"run", "--root", rootDir, "--", "id"}, "", "belongs to user 0"},
	} {
		out, errOut, err := axo(c.args...)
		if (err != nil) != (c.bad != "") || !strings.HasPrefix(out, c.out) || !strings.Contains(errOut, c.bad) {
			t.Errorf("%s: %v %q %q", c.name, err, out, errOut)
		}
	}
}
