package all_test

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/image/kernel"
	"github.com/axocoatl/isolation/internal/testprog"
)

// vmEngine is an engine with virtual machines and an image, of two layers.
func vmEngine(t *testing.T) (*engine.Engine, all.Config) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v", err)
	}
	pkg := testprog.KernelPackage(t)
	c := all.Config{StateDir: t.TempDir(), Guest: testprog.Guest(t), Progress: func(step string) { t.Log(step) }}
	k, err := kernel.Open(filepath.Join(c.StateDir, all.KernelsDir), kernel.Limits{})
	if err == nil {
		_, err = k.Import(t.Context(), []string{pkg}, kernel.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(image.Config{Dir: filepath.Join(c.StateDir, all.ImagesDir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	name := filepath.Join(t.TempDir(), "root.tar")
	root := testprog.RootFS(t,
		testprog.RootEntry{Header: tar.Header{Name: "secret", Mode: 0o600, Uid: 1234, Gid: 4321}, Body: "s"},
		testprog.RootEntry{Header: tar.Header{Name: "setuid/", Mode: 0o755}},
		testprog.RootEntry{Header: tar.Header{Name: "setuid/busybox", Mode: 0o4755}, Body: readFile(t, testprog.Busybox(t))},
		// Root without a password: su asks for none.
		testprog.RootEntry{Header: tar.Header{Name: "etc/passwd", Mode: 0o644}, Body: "root::0:0:root:/root:/bin/sh\napp:x:77:78:app:/home/app:/bin/sh\n"})
	if err := os.WriteFile(name, root, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Import(t.Context(), name, image.ImportOptions{Name: "box:1", Config: &image.RunConfig{
		Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{`id; pwd; echo "$GREET|$HOME|$PATH"`}, Env: []string{"GREET=hello"},
		User: "app", WorkingDir: "/srv/work", Volumes: []string{"/data"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := all.BuildTemplate(t.Context(), c, microvm.QEMU, microvm.DefaultTemplate, microvm.Recipe{Accel: "tcg"}); err != nil {
		t.Fatal(err)
	}
	reg, err := all.Registry(c)
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Config{Registry: reg, StateDir: c.StateDir, ProbeTimeout: time.Minute, Policy: engine.Policy{AllowEmulated: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, c
}

// inVM makes a request that only a virtual machine runs.
func inVM(r engine.Request) engine.Request {
	tier := isolation.TierMicroVM
	r.Tier, r.Engine, r.Capture = &tier, "", engine.DefaultCapture
	return r
}

func script(code string) engine.Request {
	return engine.Request{Spec: isolation.Spec{Requirement: isolation.Shell}, Process: isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", code}}}
}

// TestMicroVM is one state directory's life: it takes seconds to make.
func TestMicroVM(t *testing.T) {
	e, c := vmEngine(t)
	list := func() (names []string) {
		all, err := microvm.Templates(filepath.Join(c.StateDir, all.TemplatesDir))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range all {
			names = append(names, x.Name)
		}
		return names
	}
	t.Run("an image is what it is in a container", func(t *testing.T) {
		for _, x := range []struct {
			name string
			r    engine.Request
			user string
			want string // a part of it
		}{
			{"nothing said", inImage(isolation.ContainerImage), "", "hello|/home/app|"},
			{"arguments follow the entrypoint", inImage(isolation.ContainerImage, "ls -d /data; echo $0", "zero"), "", "/data\nzero\n"},
			{"another program", inImage(isolation.Arbitrary, "/bin/echo", "a"), "", "a\n"},
			{"another user", inImage(isolation.ContainerImage), "0", "uid=0"},
			{"an unknown number", inImage(isolation.ContainerImage, "id"), "4711", "uid=4711 gid=0(root)"},
			{"a user and a group", inImage(isolation.ContainerImage, "id"), "app:extra", "gid=90(extra)"},
			{"owners", inImage(isolation.ContainerImage, "stat -c '%u:%g %a' /secret /home/app /root /bin/busybox; cat /secret"), "", "1234:4321 600"},
			{"no new privileges", inImage(isolation.ContainerImage, "/setuid/busybox su root -c id || echo failed; grep -E 'NoNewPrivs|CapEff' /proc/self/status"), "", "failed\n"},
			{"names", inImage(isolation.ContainerImage, "cat /etc/hostname /etc/resolv.conf; hostname"), "", "sandbox\nsandbox\n"},
		} {
			x.r.Process.User = x.user
			box := x.r
			box.Engine = "builtin"
			want, exit := run(t, e, box)
			got, vmExit := run(t, e, inVM(x.r))
			if got != want || vmExit.Reason != exit.Reason || vmExit.Code != exit.Code || !strings.Contains(got, x.want) {
				t.Errorf("%s: in a machine %v: %q, in a container %v: %q, want in it %q", x.name, vmExit, got, exit, want, x.want)
			}
		}
		r := inVM(inImage(isolation.ContainerImage))
		r.Process.User = "nobody-knows"
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("an unknown user: %v", err)
		}
		r = inVM(inImage(isolation.ContainerImage))
		r.Spec.Root.Image = "none:1"
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("an unknown image: %v", err)
		}
	})
	t.Run("an image without containers falls to machines", func(t *testing.T) {
		r := inImage(isolation.ContainerImage, "uname -v")
		min := isolation.TierMicroVM
		r.MinTier = &min
		if d, err := e.Explain(t.Context(), r); err == nil || d.Got == isolation.TierMicroVM {
			t.Errorf("an emulated machine counts: %+v, %v", d, err)
		}
		r.MinTier, r.Engine = nil, "qemu"
		if d, err := e.Explain(t.Context(), r); err != nil || d.Got != isolation.TierMicroVM || !d.Emulated {
			t.Errorf("%+v, %v", d, err)
		}
	})
	t.Run("profile session", func(t *testing.T) {
		r := inVM(inImage(isolation.ContainerImage, "/setuid/busybox su root -c 'id -u; touch /x; stat -c %u /x'; id -u"))
		r.Spec.Profile = "session"
		if out, exit := run(t, e, r); out != "0\n0\n77\n" {
			t.Errorf("%v: %q", exit, out)
		}
	})
	t.Run("a directory", func(t *testing.T) {
		img, err := image.Open(image.Config{Dir: filepath.Join(c.StateDir, all.ImagesDir)})
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		box, err := img.Get("box:1")
		if err != nil {
			t.Fatal(err)
		}
		fs, err := img.RootFS(context.Background(), box)
		if err != nil {
			t.Fatal(err)
		}
		defer fs.Release()
		dir := filepath.Join(t.TempDir(), "root")
		if out, err := exec.Command("cp", "-a", fs.Layers[0], dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		r := inVM(script("cat /mark 2>/dev/null; echo x > /x && id -u; pwd; echo $HOME"))
		r.Spec.Root.Path = dir
		if out, exit := run(t, e, r); out != "0\n/\n/root\n" {
			t.Errorf("%v: %q", exit, out)
		}
		if err := os.WriteFile(filepath.Join(dir, "mark"), []byte("changed\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, exit := run(t, e, r); out != "changed\n0\n/\n/root\n" {
			t.Errorf("after a change: %v: %q", exit, out)
		}
		if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
			t.Error("the directory was written to")
		}
	})
	t.Run("a template by name", func(t *testing.T) {
		r := inVM(script("id -u; echo $GREET"))
		r.Spec.Root.Template = "none"
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("one that is not there: %v", err)
		}
		if err := all.BuildTemplate(t.Context(), c, microvm.QEMU, "mine", microvm.Recipe{Accel: "tcg", Image: "box:1"}); err != nil {
			t.Fatal(err)
		}
		r.Spec.Root.Template = "mine"
		if out, exit := run(t, e, r); out != "77\nhello\n" {
			t.Errorf("%v: %q", exit, out)
		}
	})
	t.Run("limits choose the size", func(t *testing.T) {
		r := inVM(script("nproc; awk '/MemTotal/ {print ($2 > 900000)}' /proc/meminfo; df -B1 /tmp | awk 'END {print $2}'; dd if=/dev/zero of=/tmp/x bs=1M count=900 2>&1 | grep -c 'No space'"))
		r.Spec.Resources = isolation.Resources{CPUs: 2, DiskBytes: 700 << 20}
		out, exit := run(t, e, r)
		if out != "2\n1\n734003200\n1\n" {
			t.Errorf("%v: %q", exit, out)
		}
		if len(exit.LimitsHit) != 1 || exit.LimitsHit[0].Limit != isolation.LimitDisk || exit.LimitsHit[0].Value != 700<<20 {
			t.Errorf("limits hit: %+v", exit.LimitsHit)
		}
		r = inVM(script("head -c 900000000 /dev/zero | tail -c 900000000 > /dev/null; echo survived"))
		r.Spec.Resources.MemoryBytes = 100 << 20
		if _, exit := run(t, e, r); len(exit.LimitsHit) != 1 || exit.LimitsHit[0].Limit != isolation.LimitMemory {
			t.Errorf("memory: %v, %+v", exit, exit.LimitsHit)
		}
		r.Spec.Resources = isolation.Resources{MemoryBytes: 1 << 50}
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrUnsupported) {
			t.Errorf("more memory than there is: %v", err)
		}
		r.Spec.Resources = isolation.Resources{CPUs: 1000}
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrUnsupported) {
			t.Errorf("more processors than a machine has: %v", err)
		}
	})
	t.Run("directories are copied in", func(t *testing.T) {
		dir := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "sub"), 0o755), os.WriteFile(filepath.Join(dir, "sub/f"), []byte("text\n"), 0o600),
			os.Symlink("/etc/shadow", filepath.Join(dir, "link"))); err != nil {
			t.Fatal(err)
		}
		r := inVM(script("cat /given/sub/f /one; readlink /given/link; touch /given/x 2>&1 | grep -c 'Read-only'; ls -la /dev | grep -c axo"))
		r.Spec.Mounts = []isolation.Mount{{Source: dir, Destination: "/given", ReadOnly: true}, {Source: filepath.Join(dir, "sub/f"), Destination: "/one", ReadOnly: true}}
		if out, exit := run(t, e, r); out != "text\ntext\n/etc/shadow\n1\n0\n" {
			t.Errorf("%v: %q", exit, out)
		}
		r.Spec.Mounts = []isolation.Mount{{Source: dir, Destination: "/etc", ReadOnly: true}}
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("on /etc: %v", err)
		}
		r.Spec.Mounts = []isolation.Mount{{Source: dir + "/none", Destination: "/given", ReadOnly: true}}
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("one that is not there: %v", err)
		}
		r.Tier, r.Spec.Mounts = nil, []isolation.Mount{{Source: dir, Destination: "/given"}}
		d, err := e.Explain(t.Context(), r)
		if err != nil || d.Got != isolation.TierOCI || !slices.ContainsFunc(d.Skipped, func(s engine.Skip) bool { return strings.Contains(s.Reason, "copies") }) {
			t.Errorf("a writable one: %+v, %v", d, err)
		}
	})
	t.Run("directories are copied back", func(t *testing.T) {
		dir := t.TempDir()
		for name, data := range map[string]string{"same": "1", "edit": "2", "gone": "3"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"qemu", "builtin"} {
			r := script("cd /tmp/w && cat same edit gone && rm gone && echo " + name + " > edit && mkdir -p d && echo new > d/" + name)
			r.Engine, r.Capture, r.Sync = name, engine.DefaultCapture, []engine.Copy{{Host: dir, Guest: "/tmp/w"}}
			if out, exit := run(t, e, r); !strings.HasPrefix(out, "1") || exit.Code != 0 {
				t.Errorf("%s: %v: %q", name, exit, out)
			}
			got, err := os.ReadFile(filepath.Join(dir, "edit"))
			if err != nil || string(got) != name+"\n" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "d", name)); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "gone")); err == nil {
				t.Errorf("%s: what was removed is there", name)
			}
			if err := os.WriteFile(filepath.Join(dir, "gone"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r := script("ln -s /etc/passwd /tmp/w/edit2; echo bad > /tmp/w/edit")
		r.Engine, r.Sync = "qemu", []engine.Copy{{Host: dir, Guest: "/tmp/w"}}
		if _, err := e.Run(t.Context(), r); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("a link: %v", err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "edit")); err != nil || string(got) == "bad\n" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("a damaged template of an image is made again", func(t *testing.T) {
		var name string
		for _, n := range list() {
			if strings.HasPrefix(n, "image-") && !strings.Contains(strings.TrimPrefix(n, "image-"), "-") {
				name = n
			}
		}
		file := filepath.Join(c.StateDir, all.TemplatesDir, name, "template.json")
		if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, exit := run(t, e, inVM(inImage(isolation.ContainerImage, "echo again"))); out != "again\n" {
			t.Errorf("%v: %q", exit, out)
		}
	})
	entries, err := os.ReadDir(filepath.Join(c.StateDir, all.TemplatesDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range entries {
		if strings.HasPrefix(x.Name(), ".") {
			t.Errorf("there is %s", x.Name())
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
