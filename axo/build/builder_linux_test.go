package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
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

// works is where builds are tried: a builder with real containers, and an image.
type works struct {
	*Builder
	e      *engine.Engine
	images *image.Store
	dir    string

	mu  sync.Mutex
	log []Entry
}

func newWorks(t *testing.T, l Limits) *works {
	t.Helper()
	testprog.Root(t, "profile session takes a range of user ids")
	w := &works{dir: t.TempDir()}
	program := testprog.Guest(t)
	reg, err := all.Registry(all.Config{StateDir: w.dir, Guest: program})
	if err != nil {
		t.Fatal(err)
	}
	if w.e, err = engine.New(engine.Config{StateDir: w.dir, Registry: reg, ProbeTimeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.e.Close(); err != nil {
			t.Error(err)
		}
	})
	w.images = w.store(t, filepath.Join(w.dir, all.ImagesDir))
	w.Builder = New(BuilderConfig{Engine: w.e, Images: w.images, Guest: func() ([]byte, error) { return os.ReadFile(program) }, Limits: l})
	return w
}

// store opens a store, and puts the image "box" there.
func (w *works) store(t *testing.T, dir string) *image.Store {
	t.Helper()
	s, err := image.Open(image.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	root := filepath.Join(t.TempDir(), "root.tar")
	b := testprog.RootFS(t, testprog.RootEntry{Header: tar.Header{Name: "data/old", Mode: 0o644}, Body: "old"}, testprog.RootEntry{Header: tar.Header{Name: "data/dir/x", Mode: 0o644}, Body: "x"})
	if err := os.WriteFile(root, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), root, image.ImportOptions{Name: "box", Config: &image.RunConfig{Cmd: []string{"/bin/true"}, Env: []string{"FROM=box"}}}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *works) input(steps ...Step) Input {
	return Input{
		Plan: Plan{FromImage: "box", Plain: true, Shell: []string{"/bin/sh", "-c"}, Steps: steps}, Tenant: "one", Name: "axo.local/template/t:b",
		Log: func(e Entry) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.log = append(w.log, e)
		},
	}
}

// said has what builds have told since it was asked last.
func (w *works) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, e := range w.log {
		b.WriteString(e.Step + " " + e.Level + ": " + e.Message + "\n")
	}
	w.log = nil
	return b.String()
}

// sh runs a command in a container of an image, as nobody has built it.
func (w *works) sh(t *testing.T, img image.Image, script string) string {
	t.Helper()
	tier := isolation.TierOCI
	r, err := w.e.Run(t.Context(), engine.Request{
		Spec: isolation.Spec{Requirement: isolation.Arbitrary, Root: isolation.Root{Image: img.Digest}, Profile: "session"}, Tier: &tier,
		Process: isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", script}}, Capture: engine.DefaultCapture,
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(r.Stdout.Head) + string(r.Stdout.Tail) + string(r.Stderr.Head)
}

func run(args ...string) Step { return Step{Type: Run, Args: args} }

func TestBuild(t *testing.T) {
	w := newWorks(t, Limits{})
	files := archive(t, tar.Header{Name: "src/a", Mode: 0o644}, tar.Header{Name: "src/sub/b", Mode: 0o600})
	in := w.input(
		run("rm /data/old && rm -r /data/dir && echo file > /data/dir && mkdir /data/new && echo new > /data/new/f && echo told && echo wrong >&2 && chmod 4755 /bin/busybox"),
		Step{Type: Env, Args: []string{"A", "1", "B", "two words"}},
		Step{Type: User, Args: []string{"app"}},
		Step{Type: Workdir, Args: []string{"/srv/here"}},
		Step{Type: Copy, Args: []string{"src", "in"}, FilesHash: strings.Repeat("a", 64)},
		Step{Type: Copy, Args: []string{"src/a", "/one", "root", "0640"}, FilesHash: strings.Repeat("a", 64)},
		run("id -u > who; echo \"$A $B $FROM $PWD $HOME\" >> who"),
		run("id -u > /root/who", "root"),
		run("rm /data/dir && mkdir /data/dir && echo again > /data/dir/x; echo h > /data/h; ln /data/h /data/hard; ln -s /etc/passwd /data/link; mkfifo /data/fifo", "0"),
	)
	in.Files = func(string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil }
	in.Start, in.Ready = "start it", "is it"
	img, err := w.Build(t.Context(), in)
	if err != nil {
		t.Fatalf("%v\n%s", err, w.said())
	}
	said := w.said()
	for _, want := range []string{"base info: FROM box\n", "1 info: [1/9] RUN rm /data/old", "1 info: told\n", "1 warn: wrong\n", "finalize info: image sha256:"} {
		if !strings.Contains(said, want) {
			t.Errorf("not told: %s", want)
		}
	}
	c := img.Config
	if c.User != "app" || c.WorkingDir != "/srv/here" || !slices.Equal(c.Env, []string{"FROM=box", "A=1", "B=two words"}) || c.Labels[StartLabel] != "start it" || c.Labels[ReadyLabel] != "is it" || c.Labels[Label] == "" || !slices.Equal(c.Cmd, []string{"/bin/true"}) {
		t.Errorf("%+v", c)
	}
	const look = `cd /data; ls -d *; cat dir/x new/f; ls -l hard | awk '{print $2}'; readlink link; test -p fifo && echo fifo
cd /srv/here; cat who in/a in/sub/b; stat -c '%u %a' in/a in/sub/b /one /srv/here; ls -a / | tr '\n' ' '; echo; ls -l /bin/busybox | cut -c 1-10
cat /proc/self/mounts | grep -c axo-build; find / -xdev -name '.wh.*'; true`
	const want = `dir
fifo
h
hard
link
new
again
new
2
/etc/passwd
fifo
77
1 two words box /srv/here /home/app
datadata77 644
77 600
0 640
77 755
`
	got := w.sh(t, img, look)
	if !strings.HasPrefix(got, want) || strings.Contains(got, ".axo") || !strings.Contains(got, "-rwsr-xr-x") || strings.Contains(got, ".wh.") {
		t.Errorf("%s\nwant\n%s", got, want)
	}

	// The same is not done again; what is forced is, with all that follows.
	again, err := w.Build(t.Context(), in)
	said = w.said()
	if err != nil || again.Digest != img.Digest || strings.Count(said, "CACHED") != 7 || strings.Contains(said, "told\n") {
		t.Errorf("%v, %s %s\n%s", err, again.Digest, img.Digest, said)
	}
	in.Steps[7].Force = true
	if _, err := w.Build(t.Context(), in); err != nil || strings.Count(w.said(), "CACHED") != 5 {
		t.Errorf("forced: %v", err)
	}
	// Another tenant's is another's.
	in.Tenant = "two"
	in.Steps[7].Force = false
	if _, err := w.Build(t.Context(), in); err != nil || strings.Contains(w.said(), "CACHED") {
		t.Errorf("another tenant has what the first has built: %v", err)
	}
	// What is kept is bounded.
	w.c.Limits.Cached = 3
	if err := w.Prune(t.Context()); err != nil {
		t.Error(err)
	}
	list, err := w.images.List()
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, i := range list {
		for _, n := range i.Names {
			if strings.HasPrefix(n, cacheName) {
				kept++
			}
		}
	}
	if kept != 3 {
		t.Errorf("%d layers are kept", kept)
	}
	if got := w.sh(t, img, "cat /data/new/f"); got != "new\n" {
		t.Errorf("the image without them: %q", got)
	}
}

// E2B's templates have a user "user", whatever the image has.
func TestBuildAddsUser(t *testing.T) {
	w := newWorks(t, Limits{})
	in := w.input(run("id -un > f; pwd >> f; cat f"))
	in.Plain = false
	img, err := w.Build(t.Context(), in)
	if err != nil {
		t.Fatalf("%v\n%s", err, w.said())
	}
	if said := w.said(); !strings.Contains(said, "user\n1 info: /home/user\n") || img.Config.User != "user" || img.Config.WorkingDir != "/home/user" {
		t.Errorf("%s%+v", said, img.Config)
	}
}

func TestBuildFails(t *testing.T) {
	w := newWorks(t, Limits{Step: 2 * time.Minute})
	for name, x := range map[string]struct {
		steps []Step
		from  string
		step  string
		want  string
		is    error
	}{
		"a program that fails": {steps: []Step{run("true"), run("echo why; exit 3")}, step: "2", want: "RUN echo why; exit 3: exited with status 3"},
		"no such user":         {steps: []Step{{Type: User, Args: []string{"who"}}}, step: "1", want: `no user "who"`, is: isolation.ErrInvalidArgument},
		"no such image":        {from: "nothing:1", step: "base", want: "axo image pull nothing:1", is: isolation.ErrNotFound},
		"a sandbox that lies": {
			steps: []Step{run("printf '#!/bin/sh\\necho lies' > /.axo-build/axo-guest")}, step: "1", want: "read the sandbox's files",
		},
		"a sandbox that hides": {steps: []Step{run("rm -rf /.axo-build")}, step: "1", want: "axo-guest"},
		"what an image cannot have": {
			steps: []Step{run("touch /data/.wh.old")}, step: "1", want: "cannot be in an image", is: isolation.ErrInvalidArgument,
		},
		"files that are not there": {
			steps: []Step{{Type: Copy, Args: []string{"x", "/x"}, FilesHash: strings.Repeat("b", 64)}}, step: "1", want: "files",
		},
		"another's layer": {from: cacheName + strings.Repeat("0", 64), step: "base", want: "not"},
	} {
		t.Run(name, func(t *testing.T) {
			in := w.input(x.steps...)
			in.Files = func(string) (io.ReadCloser, error) { return nil, os.ErrNotExist }
			in.Name = "axo.local/template/t:fails"
			if x.from != "" {
				in.FromImage = x.from
			}
			_, err := w.Build(t.Context(), in)
			var at *StepError
			if !errors.As(err, &at) || at.Step != x.step || !strings.Contains(err.Error(), x.want) || x.is != nil && !errors.Is(err, x.is) {
				t.Errorf("%v, want %q in step %s\n%s", err, x.want, x.step, w.said())
			}
			if _, err := w.images.Get(in.Name); !errors.Is(err, isolation.ErrNotFound) {
				t.Errorf("it has left an image: %v", err)
			}
		})
	}
	if said := w.said(); !strings.Contains(said, "2 info: why\n") || !strings.Contains(said, "build.allow_hosts") {
		t.Errorf("%s", said)
	}
	t.Run("time", func(t *testing.T) {
		w.c.Limits.Step = 3 * time.Second
		defer func() { w.c.Limits.Step = 2 * time.Minute }()
		if _, err := w.Build(t.Context(), w.input(run("sleep 600"))); !errors.Is(err, isolation.ErrResourceExhausted) || !strings.Contains(err.Error(), "longer than 3s") {
			t.Error(err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		in, enough := w.input(run("echo begun; sleep 600")), errors.New("enough")
		log := in.Log
		in.Log = func(e Entry) {
			log(e)
			if e.Message == "begun" {
				cancel(enough)
			}
		}
		if _, err := w.Build(ctx, in); !errors.Is(err, enough) {
			t.Error(err)
		}
	})
	t.Run("a disk of the sandbox", func(t *testing.T) {
		w.c.Limits.Disk = 16 << 20
		defer func() { w.c.Limits.Disk = 2 << 30 }()
		_, err := w.Build(t.Context(), w.input(run("head -c 64000000 /dev/zero > /data/big")))
		if err == nil || !strings.Contains(err.Error(), "its limit of disk") {
			t.Error(err)
		}
	})
	t.Run("a disk of the host", func(t *testing.T) {
		disk := t.TempDir()
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		s := w.store(t, filepath.Join(disk, "images"))
		whole := w.c.Images
		defer func() { w.c.Images = whole }()
		w.c.Images = s
		in := w.input(run("head -c 30000000 /dev/urandom > /data/big"))
		// The sandboxes are of the other store, which has the same image.
		_, err := w.Build(t.Context(), in)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v\n%s", err, w.said())
		}
		if _, err := s.Get(in.Name); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("it has left an image: %v", err)
		}
	})
}

func newTemplates(t *testing.T, w *works, dir string) *Templates {
	t.Helper()
	x, err := Open(t.Context(), Config{Builder: w.Builder, Images: w.images, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	return x
}

// ends waits for the end of a build.
func ends(t *testing.T, x *Templates, tenant, template, build string) (Build, []Entry) {
	t.Helper()
	for range 6000 {
		b, log, err := x.Status(tenant, template, build)
		if err != nil {
			t.Fatal(err)
		}
		if b.Status == Ready || b.Status == Failed {
			return b, log
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it does not end")
	return Build{}, nil
}

func TestTemplates(t *testing.T) {
	w := newWorks(t, Limits{Upload: 1 << 20})
	dir := filepath.Join(w.dir, "built")
	x := newTemplates(t, w, dir)
	plan := func(script string) Plan { return w.input(run(script)).Plan }
	begin := func(name, script string, tags ...string) (Template, Build) {
		t.Helper()
		tm, b, err := x.New("one", Want{Name: name, Tags: tags, CPUs: 1, MemoryMB: 256})
		if err == nil {
			err = x.Start("one", tm.ID, b.ID, plan(script), nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		return tm, b
	}
	// Two at once of one name: what was asked for later is what it means, whichever ends last.
	tm, slow := begin("a", "sleep 1; echo slow > /made")
	_, fast := begin("a", "echo fast > /made", "v1")
	_, fast2 := begin("a", "echo fast2 > /made")
	for _, b := range []Build{slow, fast, fast2} {
		if got, log := ends(t, x, "one", "a", b.ID); got.Status != Ready {
			t.Fatalf("%+v\n%v", got.Reason, log)
		}
	}
	_, found, err := x.Find("one", "a")
	if err != nil || found.ID != fast2.ID {
		t.Errorf("%s, %v", found.ID, err)
	}
	if _, found, err = x.Find("one", tm.ID+":v1"); err != nil || found.ID != fast.ID {
		t.Errorf("v1: %s, %v", found.ID, err)
	}
	if _, found, err = x.Find("one", "a:"+slow.ID); err != nil || found.ID != slow.ID {
		t.Errorf("by its id: %s, %v", found.ID, err)
	}
	img, err := w.images.Get(found.Image)
	if err != nil || w.sh(t, img, "cat /made") != "slow\n" || !Private(img) {
		t.Errorf("%v %v", img.Names, err)
	}
	if err := x.Start("one", "a", slow.ID, plan("true"), nil); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("begun twice: %v", err)
	}
	// From a template, which others do not have.
	p := plan("cat /made > /more")
	p.FromImage, p.FromTemplate = "", "a:v1"
	for _, who := range []string{"one", "two"} {
		tm, b, err := x.New(who, Want{Name: "b"})
		if err == nil {
			err = x.Start(who, tm.ID, b.ID, p, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, _ := ends(t, x, who, "b", b.ID)
		if who == "one" && got.Status != Ready || who == "two" && (got.Status != Failed || got.Reason.Step != "base") {
			t.Errorf("%s: %+v %+v", who, got, got.Reason)
		}
	}
	for _, err := range []error{x.Delete("two", tm.ID), x.RemoveTags("two", "a", nil), x.Start("two", tm.ID, slow.ID, plan("x"), nil)} {
		if !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("another tenant's: %v", err)
		}
	}
	if _, _, err := x.Status("two", tm.ID, slow.ID); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	if b, err := x.SetTags("one", "a:v1", []string{"v1.1", "default"}); err != nil || b.ID != fast.ID {
		t.Error(b.ID, err)
	}
	if _, found, err := x.Find("one", "a"); err != nil || found.ID != fast.ID {
		t.Errorf("tagged: %s, %v", found.ID, err)
	}
	if err := x.RemoveTags("one", "a", []string{"default"}); err != nil {
		t.Error(err)
	}
	if _, _, err := x.Find("one", "a"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("without its tag: %v", err)
	}
	for what, want := range map[string]Want{"a bad name": {Name: "A/b"}, "the server's": {Name: "base"}, "a bad tag": {Name: "c", Tags: []string{"a b"}}, "a number": {Name: "c", CPUs: -1}} {
		if _, _, err := x.New("one", want); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}

	// Files.
	hash := strings.Repeat("c", 64)
	if err := x.Upload(t.Context(), "one", hash, bytes.NewReader(archive(t, tar.Header{Name: "f"}))); err != nil || !x.Uploaded("one", hash) || x.Uploaded("two", hash) {
		t.Error(err)
	}
	if err := x.Upload(t.Context(), "one", strings.Repeat("d", 64), bytes.NewReader(archive(t, tar.Header{Name: "../f"}))); !errors.Is(err, isolation.ErrInvalidArgument) || x.Uploaded("one", strings.Repeat("d", 64)) {
		t.Errorf("a way out: %v", err)
	}
	if err := x.Upload(t.Context(), "one", hash, io.LimitReader(zeros{}, 2<<20)); !errors.Is(err, isolation.ErrResourceExhausted) || !x.Uploaded("one", hash) {
		t.Errorf("too much: %v", err)
	}
	if err := x.Upload(t.Context(), "one", "../x", nil); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("a name: %v", err)
	}

	// One that is removed while it is built, and one that ends with its process.
	gone, gb := begin("gone", "echo begun; sleep 600")
	lost, lb := begin("lost", "echo begun; sleep 600")
	for _, b := range []struct{ tm, b string }{{gone.ID, gb.ID}, {lost.ID, lb.ID}} {
		for n := 0; ; n++ {
			_, log, err := x.Status("one", b.tm, b.b)
			if err != nil || n > 6000 {
				t.Fatal("it does not begin", err)
			}
			if slices.ContainsFunc(log, func(e Entry) bool { return e.Message == "begun" }) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := x.Delete("one", "gone"); err != nil {
		t.Fatal(err)
	}
	// What a killed process would have left.
	stray, err := w.images.Get("box")
	if err == nil {
		err = errors.Join(w.images.Name(t.Context(), stray.Digest, imageName+"nobody:x"), os.WriteFile(filepath.Join(dir, "x.json.tmp"), nil, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	x.Close()
	x = newTemplates(t, w, dir)
	b, log, err := x.Status("one", "lost", lb.ID)
	if err != nil || b.Status != Failed || !strings.Contains(b.Reason.Message, "the daemon ended") || len(log) == 0 {
		t.Errorf("%+v %v %v", b.Reason, log, err)
	}
	if _, err := x.Get("one", "gone"); !errors.Is(err, isolation.ErrNotFound) {
		t.Error(err)
	}
	if _, err := w.images.Get(imageName + "nobody:x"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("an image of nobody: %v", err)
	}
	if _, err := w.images.Get("box"); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if _, found, err := x.Find("one", "a:v1"); err != nil || found.ID != fast.ID || found.MemoryMB != 256 {
		t.Errorf("after the next start: %+v, %v", found, err)
	}
	if err := x.Delete("one", "a"); err != nil {
		t.Error(err)
	}
	if _, err := w.images.Get(imageName + tm.ID + ":" + fast.ID); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("the image of a template that was removed: %v", err)
	}
}
