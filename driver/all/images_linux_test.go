package all_test

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/internal/testprog"
)

// imageEngine is an engine with a store of images, and one image in it.
func imageEngine(t *testing.T, c image.RunConfig, more ...testprog.RootEntry) (*engine.Engine, *image.Store) {
	t.Helper()
	return warmImageEngine(t, 0, c, more...)
}

func warmImageEngine(t *testing.T, warm int, c image.RunConfig, more ...testprog.RootEntry) (*engine.Engine, *image.Store) {
	t.Helper()
	state := t.TempDir()
	s, err := image.Open(image.Config{Dir: filepath.Join(state, all.ImagesDir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	name := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(name, testprog.RootFS(t, more...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(context.Background(), name, image.ImportOptions{Name: "box:1", Config: &c}); err != nil {
		t.Fatal(err)
	}
	reg, err := all.Registry(all.Config{StateDir: state, Guest: testprog.Guest(t), Warm: warm, Runtimes: installed()})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Config{Registry: reg, StateDir: state, ProbeTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, s
}

func inImage(req isolation.Requirement, args ...string) engine.Request {
	return engine.Request{
		Spec:    isolation.Spec{Requirement: req, Root: isolation.Root{Image: "box:1"}},
		Process: isolation.ProcessSpec{Args: args}, Capture: engine.DefaultCapture,
	}
}

// skipRefused skips a test where the host has no containers, unless it must have.
func skipRefused(t *testing.T, err error) {
	t.Helper()
	var refused *engine.RefusedError
	switch {
	case !errors.As(err, &refused):
	case os.Getenv("AXO_REQUIRE") != "":
		t.Fatal(err)
	default:
		t.Skipf("SKIPPED, NOT PROVED: %v", err)
	}
}

// installed has the runtimes that are here, or can be built.
var installed = sync.OnceValue(func() map[string]string {
	found := map[string]string{}
	for _, name := range all.Runtimes() {
		if path, err := testprog.FindRuntime(name); err == nil {
			found[name] = path
		}
	}
	return found
})

// onEngines runs a test with every engine of the tier. One that is not the
// builtin one need not be here.
func onEngines(t *testing.T, f func(t *testing.T, engine string)) {
	t.Helper()
	for _, name := range append([]string{"builtin"}, all.Runtimes()...) {
		t.Run(name, func(t *testing.T) {
			if name != "builtin" && installed()[name] == "" {
				if os.Getenv("AXO_REQUIRE") != "" {
					t.Fatalf("no %s", name)
				}
				t.Skipf("SKIPPED, NOT PROVED: no %s", name)
			}
			f(t, name)
		})
	}
}

// run runs a request and returns its output.
func run(t *testing.T, e *engine.Engine, r engine.Request) (string, isolation.Exit) {
	t.Helper()
	res, err := e.Run(context.Background(), r)
	skipRefused(t, err)
	if err != nil {
		t.Fatal(err)
	}
	return string(res.Stdout.Head) + string(res.Stderr.Head), res.Exit
}

// TestImageConfig: an image runs as its config says, as docker run has it.
func TestImageConfig(t *testing.T) {
	const show = `id; pwd; echo "$GREET|$HOME|$PATH"`
	e, _ := imageEngine(t, image.RunConfig{
		Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{show}, Env: []string{"GREET=hello"}, User: "app", WorkingDir: "/srv/work",
		Volumes: []string{"/data"},
	})
	const asApp, asRoot = "uid=77(app) gid=78(app) groups=90(extra)\n", "uid=0(root) gid=0(root)\n"
	const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
	for _, c := range []struct {
		name string
		r    engine.Request
		user string
		want string
	}{
		{"nothing said", inImage(isolation.ContainerImage), "", asApp + "/srv/work\nhello|/home/app|" + path},
		{"arguments follow the entrypoint", inImage(isolation.ContainerImage, "ls -d /data; echo $0", "zero"), "", "/data\nzero\n"},
		{"another program", inImage(isolation.Arbitrary, "/bin/echo", "a"), "", "a\n"},
		{"another user", inImage(isolation.ContainerImage), "0", asRoot + "/srv/work\nhello|/root|" + path},
		{"a number that the image does not know", inImage(isolation.ContainerImage, "id"), "4711", "uid=4711 gid=0(root)\n"},
		{"a user and a group", inImage(isolation.ContainerImage, "id"), "app:extra", "uid=77(app) gid=90(extra)\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEngines(t, func(t *testing.T, engine string) {
				c.r.Process.User, c.r.Engine = c.user, engine
				out, exit := run(t, e, c.r)
				if out != c.want || exit.Code != 0 {
					t.Errorf("%v: %q, want %q", exit, out, c.want)
				}
			})
		})
	}
	r := inImage(isolation.ContainerImage)
	r.Process.User = "nobody-knows"
	if _, err := e.Run(context.Background(), r); !errors.Is(err, isolation.ErrNotFound) || !strings.Contains(err.Error(), "nobody-knows") {
		t.Errorf("unknown user: %v", err)
	}
}

// TestImageIsNotChanged: what a program does to its root is gone afterwards, and
// two at a time do not see each other.
func TestImageIsNotChanged(t *testing.T) {
	e, s := imageEngine(t, image.RunConfig{})
	img, err := s.Get("box:1")
	if err != nil {
		t.Fatal(err)
	}
	fs, err := s.RootFS(context.Background(), img)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Release()
	before := listing(t, fs.Layers[0])
	const change = "rm -rf /etc/group /root; mkdir /root; echo x > /root/x; chmod 777 /etc; mv /bin/awk /moved; rm /bin/sed; ln /bin/busybox /hard; echo evil > /etc/passwd; ls -A /root; ls -d /moved /bin/awk /etc/group 2>/dev/null"
	onEngines(t, func(t *testing.T, engine string) {
		r := inImage(isolation.Shell, "sh", "-c", change)
		r.Engine = engine
		if out, exit := run(t, e, r); out != "x\n/moved\n" {
			t.Errorf("%v: %q", exit, out)
		}
	})
	if after := listing(t, fs.Layers[0]); after != before {
		t.Errorf("the layer was changed:\n%s\n%s", before, after)
	}
}

// listing tells all of a directory that a program could have changed.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		b.WriteString(strings.TrimPrefix(p, dir))
		for _, n := range []int64{int64(st.Mode), int64(st.Uid), int64(st.Gid), st.Size, st.Mtim.Sec, st.Mtim.Nsec, int64(st.Nlink)} {
			b.WriteString(" " + strconv.FormatInt(n, 10))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestImageOwners: files belong inside to whom the image says, and outside to
// nobody that the host has.
func TestImageOwners(t *testing.T) {
	e, _ := imageEngine(t, image.RunConfig{},
		testprog.RootEntry{Header: tar.Header{Name: "secret", Mode: 0o600, Uid: 1234, Gid: 4321}, Body: "s"})
	onEngines(t, func(t *testing.T, engine string) {
		r := inImage(isolation.Shell, "sh", "-c", `stat -c '%u:%g %a' /secret /home/app /root /bin/busybox; cat /secret 2>&1; grep -c . /proc/self/uid_map`)
		r.Engine = engine
		const want = "1234:4321 600\n77:78 750\n0:0 700\n0:0 755\ncat: can't open '/secret': Permission denied\n1\n"
		if out, _ := run(t, e, r); out != want {
			t.Errorf("%q, want %q", out, want)
		}
		r.Process.Args, r.Process.User = []string{"cat", "/secret"}, "1234"
		if out, _ := run(t, e, r); out != "s" {
			t.Errorf("its owner reads %q", out)
		}
	})
}

// TestImageLimits: the writable layer is bounded, and so is what is in /dev/shm,
// together.
func TestImageLimits(t *testing.T) {
	e, _ := imageEngine(t, image.RunConfig{})
	r := inImage(isolation.Shell, "sh", "-c", "dd if=/dev/zero of=/dev/shm/a bs=1M count=5 2>/dev/null; dd if=/dev/zero of=/b bs=1M count=100 2>&1 | grep -c 'No space'")
	r.Spec.Resources.DiskBytes = 8 << 20
	onEngines(t, func(t *testing.T, engine string) {
		r.Engine = engine
		out, exit := run(t, e, r)
		if out != "1\n" {
			t.Errorf("%v: %q", exit, out)
		}
		if !slices.ContainsFunc(exit.LimitsHit, func(l isolation.LimitHit) bool { return l.Limit == isolation.LimitDisk }) {
			t.Errorf("the disk limit is not told: %+v", exit.LimitsHit)
		}
	})
}

// TestHostileRoots: names in an image that lead elsewhere do not, and what
// cannot be run is an error of the engine.
func TestHostileRoots(t *testing.T) {
	link := func(name, to string) testprog.RootEntry {
		return testprog.RootEntry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}}
	}
	t.Run("links in the place of what is mounted", func(t *testing.T) {
		// Links lead from the image's root, so all of these end inside it.
		e, _ := imageEngine(t, image.RunConfig{WorkingDir: "/w/../../../../var/evil"},
			link("proc", "../../../../../../var/p"), link("sys", "/var/s"), link("dev", "/var/d"), link("run", ".."),
			testprog.RootEntry{Header: tar.Header{Name: "var/", Mode: 0o755}},
			testprog.RootEntry{Header: tar.Header{Name: "var/p/", Mode: 0o755}}, testprog.RootEntry{Header: tar.Header{Name: "var/s/", Mode: 0o755}},
			testprog.RootEntry{Header: tar.Header{Name: "var/d/", Mode: 0o755}},
			link("etc/hosts", "/proc/1/root/etc/hosts"), link("etc/resolv.conf", "../../../../etc/shadow"), link("etc/hostname", "/nowhere/x"))
		out, exit := run(t, e, inImage(isolation.Shell, "sh", "-c", "pwd; cat /etc/hostname; test -e /var/p/self && test -c /var/d/null && echo inside; wc -c < /etc/resolv.conf"))
		if out != "/var/evil\nsandbox\ninside\n0\n" || exit.Code != 0 {
			t.Errorf("%v: %q", exit, out)
		}
	})
	for _, c := range []struct {
		name, text string
		config     image.RunConfig
		more       []testprog.RootEntry
	}{
		{"a file where a directory is", "proc", image.RunConfig{}, []testprog.RootEntry{{Header: tar.Header{Name: "proc", Mode: 0o644}}}},
		{"a loop of links", "symbolic links", image.RunConfig{WorkingDir: "/a/b"}, []testprog.RootEntry{link("a", "b"), link("b", "a")}},
		{"nothing to run", "neither an entrypoint", image.RunConfig{}, nil},
		{"a bad environment", "KEY=VALUE", image.RunConfig{Cmd: []string{"true"}, Env: []string{"X"}}, nil},
		{"a user that is not there", "no user", image.RunConfig{Cmd: []string{"true"}, User: "who"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, _ := imageEngine(t, c.config, c.more...)
			_, err := e.Run(context.Background(), inImage(isolation.ContainerImage))
			skipRefused(t, err)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v; want %q", err, c.text)
			}
			if o := isolation.OutcomeOf(err); o != isolation.NotStarted {
				t.Errorf("outcome %s", o)
			}
		})
	}
}

// TestWarmImage: what stands ready for a name is not used once the name means
// another image.
func TestWarmImage(t *testing.T) {
	e, s := warmImageEngine(t, 1, image.RunConfig{})
	r := inImage(isolation.Shell, "cat", "/version")
	for range 3 {
		if out, _ := run(t, e, r); !strings.Contains(out, "No such file") {
			t.Errorf("%q", out)
		}
	}
	name := filepath.Join(t.TempDir(), "root.tar")
	version := testprog.RootEntry{Header: tar.Header{Name: "version", Mode: 0o644}, Body: "2"}
	if err := os.WriteFile(name, testprog.RootFS(t, version), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(context.Background(), name, image.ImportOptions{Name: "box:1"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, _ := run(t, e, r); out != "2" {
			t.Errorf("%q", out)
		}
	}
}

func TestMissingImage(t *testing.T) {
	e, _ := imageEngine(t, image.RunConfig{})
	r := inImage(isolation.ContainerImage)
	r.Spec.Root.Image = "ghcr.io/o/tool:2"
	_, err := e.Run(context.Background(), r)
	skipRefused(t, err)
	if !errors.Is(err, isolation.ErrNotFound) || !strings.Contains(err.Error(), "axo image pull ghcr.io/o/tool:2") {
		t.Error(err)
	}
}

// TestImageStaysWhileItRuns: gc leaves the layers of a sandbox alone until it is
// deleted.
func TestImageStaysWhileItRuns(t *testing.T) {
	e, s := imageEngine(t, image.RunConfig{})
	img, err := s.Get("box:1")
	if err != nil {
		t.Fatal(err)
	}
	in, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, told, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r := inImage(isolation.Shell, "sh", "-c", "echo up; read x; /bin/busybox cat /etc/group | wc -l")
	r.Stdin, r.Stdout = in, told
	done := make(chan *engine.Result, 1)
	go func() {
		res, err := e.Run(context.Background(), r)
		if err != nil {
			t.Error(err)
		}
		told.Close()
		done <- res
	}()
	b := make([]byte, 3)
	if _, err := out.Read(b); err != nil {
		feed.Close()
		<-done
		t.Fatal("no container started")
	}
	if _, err := s.Remove(context.Background(), img.Digest); err != nil {
		t.Fatal(err)
	}
	freed, err := s.GC(context.Background(), image.GCOptions{})
	if err != nil || freed.Layers != 0 {
		t.Errorf("%+v %v", freed, err)
	}
	feed.Close()
	if res := <-done; res != nil && !strings.Contains(string(res.Stdout.Head), "4\n") {
		t.Errorf("%q %q", res.Stdout.Head, res.Stderr.Head)
	}
	if freed, err = s.GC(context.Background(), image.GCOptions{}); err != nil || freed.Layers != 1 {
		t.Errorf("after its end: %+v %v", freed, err)
	}
}

// TestImageStaysWhileNobodyHasIt: gc leaves the layers of a detached sandbox alone also
// when its maker has ended. What is recovered has the image's configuration still.
func TestImageStaysWhileNobodyHasIt(t *testing.T) {
	state := t.TempDir()
	s, err := image.Open(image.Config{Dir: filepath.Join(state, all.ImagesDir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	name := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(name, testprog.RootFS(t), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := s.Import(t.Context(), name, image.ImportOptions{Name: "box:1", Config: &image.RunConfig{Env: []string{"OF=image"}}})
	if err != nil {
		t.Fatal(err)
	}
	open := func() (*engine.Engine, isolation.Driver) {
		reg, err := all.Registry(all.Config{StateDir: state, Guest: testprog.Guest(t)})
		if err != nil {
			t.Fatal(err)
		}
		e, err := engine.New(engine.Config{Registry: reg, StateDir: state})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range reg.All() {
			if x.Driver.Name() == "builtin" {
				return e, x.Driver
			}
		}
		t.Fatal("there is no engine builtin")
		return nil, nil
	}
	e, d := open()
	if _, err := d.Create(t.Context(), "stays", isolation.Spec{Requirement: isolation.Shell, Root: isolation.Root{Image: "box:1"}, Detached: true}); err != nil {
		_ = e.Close()
		skipRefused(t, err)
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), img.Digest); err != nil {
		t.Fatal(err)
	}
	freed, err := s.GC(t.Context(), image.GCOptions{})
	if err != nil || freed.Layers != 0 {
		t.Errorf("%+v %v", freed, err)
	}
	e, _ = open()
	list, err := e.Recover(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "stays" || list[0].Sandbox == nil {
		t.Fatalf("%+v, %v", list, err)
	}
	var out strings.Builder
	p, err := list[0].Sandbox.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"sh", "-c", "/bin/busybox cat /etc/group | wc -l; echo $OF"}}, isolation.Stdio{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := p.Wait(t.Context()); err != nil || !x.Success() || out.String() != "4\nimage\n" {
		t.Errorf("%v, %v, %q", x, err, out.String())
	}
	if err := list[0].Sandbox.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if freed, err = s.GC(t.Context(), image.GCOptions{}); err != nil || freed.Layers != 1 {
		t.Errorf("after its end: %+v %v", freed, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// TestRootPath runs in a directory of the host, which stays as it is.
func TestRootPath(t *testing.T) {
	e, s := imageEngine(t, image.RunConfig{})
	img, err := s.Get("box:1")
	if err != nil {
		t.Fatal(err)
	}
	fs, err := s.RootFS(context.Background(), img)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Release()
	before := listing(t, fs.Layers[0])
	r := inImage(isolation.Shell, "sh", "-c", "echo x > /x; cat /x; id -u; pwd; echo $HOME")
	r.Spec.Root = isolation.Root{Path: fs.Layers[0]}
	if out, exit := run(t, e, r); out != "x\n0\n/\n/root\n" || exit.Code != 0 {
		t.Errorf("%v: %q", exit, out)
	}
	if after := listing(t, fs.Layers[0]); after != before {
		t.Error("the directory was changed")
	}
	r.Spec.Root.Path = filepath.Join(t.TempDir(), "none")
	if _, err := e.Run(context.Background(), r); !errors.Is(err, isolation.ErrNotFound) {
		t.Error(err)
	}
}
