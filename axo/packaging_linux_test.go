package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/internal/testprog"
)

// TestPackage builds the package twice: both are the same, and what is in it works.
func TestPackage(t *testing.T) {
	for _, tool := range []string{"dpkg-deb", "systemd-analyze"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip := t.Skipf
			if os.Getenv("AXO_REQUIRE") != "" {
				skip = t.Fatalf
			}
			skip("SKIPPED, NOT PROVED: %v", err)
		}
	}
	dir := t.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo"}); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "XZ=0", "SOURCE_DATE_EPOCH=1700000000")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	one, two := filepath.Join(dir, "one.deb"), filepath.Join(dir, "two.deb")
	for _, deb := range []string{one, two} {
		run("../packaging/deb.sh", dir, deb, "1.2.3")
	}
	a, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(two); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the same programs made another package, of %d and %d bytes: %v", len(a), len(b), err)
	}
	if v := run("dpkg-deb", "--field", one, "Version"); v != "1.2.3\n" {
		t.Errorf("version %q", v)
	}
	for line := range strings.Lines(run("dpkg-deb", "--contents", one)) {
		if f := strings.Fields(line); f[1] != "root/root" || f[0][5] == 'w' || f[0][8] == 'w' {
			t.Errorf("others can change %s", line)
		}
	}
	root := filepath.Join(dir, "root")
	run("dpkg-deb", "--raw-extract", one, root)
	if out := run(filepath.Join(root, "usr/bin/axo"), "version"); !strings.HasPrefix(out, "axo ") {
		t.Error(out)
	}
	run(filepath.Join(root, "usr/bin/axo"), "config", "check", "--config", filepath.Join(root, "etc/axo/config.toml"))

	// The units are the service manager's to judge: of programs that are where they
	// say, which here are those of the package.
	units := filepath.Join(dir, "units")
	if err := os.Mkdir(units, 0o755); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range []string{"axo.service", "axo.socket", "axo.slice"} {
		b, err := os.ReadFile(filepath.Join(root, "lib/systemd/system", name))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "=/usr/bin/axo", "="+filepath.Join(root, "usr/bin/axo"))
		if name == "axo.service" && text == string(b) {
			t.Error("the service does not start /usr/bin/axo")
		}
		files = append(files, filepath.Join(units, name))
		if err := os.WriteFile(files[len(files)-1], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out := run("systemd-analyze", append([]string{"verify", "--man=no"}, files...)...); out != "" {
		t.Errorf("systemd says:\n%s", out)
	}
	// Or it cannot find anything wrong.
	bad := filepath.Join(units, "bad.service")
	if err := os.WriteFile(bad, []byte("[Service]\nExecStart=/no/such/program\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", bad).CombinedOutput(); err == nil {
		t.Errorf("control: a unit without its program is good: %s", out)
	}
}

// TestSocketActivation: a request that was made before the daemon was there is
// answered, and the socket stays when the daemon ends.
func TestSocketActivation(t *testing.T) {
	dir := t.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo"}); err != nil {
		t.Fatal(err)
	}
	h := &host{dir: dir, state: filepath.Join(dir, "state")}
	if err := os.Mkdir(h.state, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.state, "axo.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	start := func(pid string, sockets ...interface{ File() (*os.File, error) }) (*exec.Cmd, *bytes.Buffer) {
		t.Helper()
		// The shell becomes axo, so that the id is axo's.
		cmd := exec.Command("sh", "-c", `LISTEN_PID=`+pid+` LISTEN_FDS=`+fmt.Sprint(len(sockets))+` exec "$0" serve --warm 0 --state-dir "$1"`, filepath.Join(dir, "axo"), h.state)
		out := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		for _, s := range sockets {
			f, err := s.File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, out
	}
	c, err := client.New(client.Config{Address: "unix://" + path, Key: "e2b_" + strings.Repeat("0", 40)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answered := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		_, err := c.Health(ctx)
		answered <- err
	}()
	d, out := start("$$", l)
	if err := <-answered; err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the service manager's socket is gone: %v", err)
	}

	// What was meant for another process is left alone: then there is a socket in
	// the way, which is replaced.
	d, out = start("1", l)
	eventually(t, "the daemon to make its own socket", func() bool {
		info, err := os.Stat(path)
		return err == nil && info.Mode().Perm() == 0o600
	})
	if err := d.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}

	// A socket that others than this host can reach, and one that cannot be served.
	world, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	for want, s := range map[string]interface{ File() (*os.File, error) }{"not of this host alone": world.(*net.TCPListener), "does not listen": packet.(*net.UDPConn)} {
		d, out := start("$$", s)
		if err := d.Wait(); err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("want %q: %v\n%s", want, err, out)
		}
	}
	if left := h.workers(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
