package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/axocoatl/isolation"
)

// writeLayout writes an OCI image layout with the given images, by their names.
func writeLayout(t testing.TB, dir string, images map[string]v1.Image) {
	t.Helper()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for name, img := range images {
		var o []layout.Option
		if name != "" {
			o = append(o, layout.WithAnnotations(map[string]string{annotationRef: name}))
		}
		if err := p.AppendImage(img, o...); err != nil {
			t.Fatal(err)
		}
	}
}

// tarOf is the tar of a directory, as tar -C DIR -c . makes it.
func tarOf(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestImport takes the same image in every form that there is.
func TestImport(t *testing.T) {
	root := mkTar(t, ent{name: "bin/"}, ent{name: "bin/x", body: "#!", mode: 0o755})
	img := mkImage(t, "", gzLayer(t, root), zstLayer(t, mkTar(t, ent{name: "bin/y", body: "y"})))
	dir := filepath.Join(t.TempDir(), "layout")
	writeLayout(t, dir, map[string]v1.Image{"": img})
	layoutTar := tarOf(t, dir)
	docker := filepath.Join(t.TempDir(), "docker.tar")
	writeDockerArchive(t, docker, img, "tool:1")
	tag, err := name.NewTag("tool:1")
	if err != nil {
		t.Fatal(err)
	}
	// By another's hand: its layers are compressed, and it has no layout.
	other := filepath.Join(t.TempDir(), "other.tar")
	if err := tarball.WriteToFile(other, tag, mkImage(t, "", gzLayer(t, root))); err != nil {
		t.Fatal(err)
	}
	links := mkTar(t, ent{name: "a/layer.tar", body: string(root)}, ent{name: "b/layer.tar", typ: tar.TypeSymlink, link: "../a/layer.tar"},
		ent{name: "config.json", body: string(must(mkImage(t, "", plainLayer(root), plainLayer(root)).RawConfigFile()))},
		ent{name: "manifest.json", body: `[{"Config":"config.json","RepoTags":["twice:1"],"Layers":["a/layer.tar","b/layer.tar"]}]`})
	for _, c := range []struct {
		name, path string
		o          ImportOptions
		layers     int
		names      []string
		config     bool
	}{
		{"layout", dir, ImportOptions{}, 2, nil, true},
		{"layout with a name", dir, ImportOptions{Name: "my/tool"}, 2, []string{"docker.io/my/tool:latest"}, true},
		{"tar of a layout", writeFile(t, "l.tar", layoutTar), ImportOptions{}, 2, nil, true},
		{"gzip of a layout", writeFile(t, "l.tgz", gz(t, layoutTar)), ImportOptions{}, 2, nil, true},
		{"docker save", docker, ImportOptions{}, 2, []string{"docker.io/library/tool:1"}, true},
		{"gzip of docker save", writeFile(t, "d.tgz", gz(t, readFile(t, docker))), ImportOptions{}, 2, []string{"docker.io/library/tool:1"}, true},
		{"docker save, compressed layers", other, ImportOptions{}, 1, []string{"docker.io/library/tool:1"}, true},
		{"docker save, the same layer twice", writeFile(t, "links.tar", links), ImportOptions{}, 2, []string{"docker.io/library/twice:1"}, true},
		{"root", writeFile(t, "r.tar", root), ImportOptions{}, 1, nil, false},
		{"gzip of a root", writeFile(t, "r.tgz", gz(t, root)), ImportOptions{Name: "r:1"}, 1, []string{"docker.io/library/r:1"}, false},
		{"zstd of a root", writeFile(t, "r.zst", zst(t, root)), ImportOptions{Config: &RunConfig{User: "1000:1000", ExposedPorts: []string{"1/tcp"}}}, 1, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, Limits{})
			got, err := s.Import(context.Background(), c.path, c.o)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Layers) != c.layers || !slices.Equal(got.Names, c.names) && len(c.names)+len(got.Names) > 0 || got.Platform != HostPlatform() || (got.Config.User == "1000:1000") != c.config {
				t.Errorf("%+v", got)
			}
			r := rootFS(t, s, got)
			if b := readFile(t, filepath.Join(r.Layers[0], "bin/x")); string(b) != "#!" {
				t.Errorf("%q", b)
			}
			r.Release()
			if left := leftovers(t, s); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			whole(t, s)
			vanishes(t, s)
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestImportSelect(t *testing.T) {
	a, b := mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "a"}))), mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "b"})))
	dir := filepath.Join(t.TempDir(), "layout")
	writeLayout(t, dir, map[string]v1.Image{"example.com/a:1": a, "two": b})
	s := newStore(t, Limits{})
	if _, err := s.Import(context.Background(), dir, ImportOptions{}); !errors.Is(err, isolation.ErrInvalidArgument) || !strings.Contains(err.Error(), "select one") {
		t.Error(err)
	}
	if _, err := s.Import(context.Background(), dir, ImportOptions{Select: "three"}); !errors.Is(err, isolation.ErrNotFound) || !strings.Contains(err.Error(), "two") {
		t.Error(err)
	}
	for sel, want := range map[string]v1.Image{"example.com/a:1": a, "two": b, must(b.Digest()).String(): b} {
		img, err := s.Import(context.Background(), dir, ImportOptions{Select: sel})
		if err != nil || img.Digest != must(want.Digest()).String() {
			t.Errorf("%s: %+v %v", sel, img, err)
		}
	}
	if img, err := s.Get("example.com/a:1"); err != nil || img.Digest != must(a.Digest()).String() {
		t.Error(img, err)
	}
	tars := filepath.Join(t.TempDir(), "two.tar")
	if err := tarball.MultiWriteToFile(tars, map[name.Tag]v1.Image{must(name.NewTag("a:1")): a, must(name.NewTag("b:1")): b}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(context.Background(), tars, ImportOptions{}); !errors.Is(err, isolation.ErrNotFound) || !strings.Contains(err.Error(), "select one of the 2") {
		t.Error(err)
	}
	if img, err := s.Import(context.Background(), tars, ImportOptions{Select: "b:1"}); err != nil || len(img.Layers) != 1 {
		t.Error(err)
	}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: a, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})
	other := filepath.Join(t.TempDir(), "index")
	if _, err := layout.Write(other, index); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Import(context.Background(), other, ImportOptions{}); err != nil {
		t.Errorf("one image in a layout is meant, and its config says for what it is: %+v %v", img, err)
	}
}

// TestImportRefuses what is damaged, is nothing, or reaches out of itself.
func TestImportRefuses(t *testing.T) {
	img := mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "bin/x", body: "x"})))
	config := string(must(img.RawConfigFile()))
	secret := writeFile(t, "secret", []byte(config))
	mkLayout := func(edit func(dir string)) string {
		dir := filepath.Join(t.TempDir(), "layout")
		writeLayout(t, dir, map[string]v1.Image{"": img})
		edit(dir)
		return dir
	}
	blob := func(dir, digest string) string {
		return filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	layer := must(must(img.Layers())[0].Digest()).String()
	root := mkTar(t, ent{name: "bin/x", body: strings.Repeat("x", 3000)})
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	docker := func(manifest string, more ...ent) string {
		return writeFile(t, "d.tar", mkTar(t, append([]ent{{name: "manifest.json", body: manifest}, {name: "config.json", body: config}}, more...)...))
	}
	for _, c := range []struct {
		name, path string
		o          ImportOptions
		limits     Limits
		class      error
		text       string
	}{
		{"nothing there", "/nowhere", ImportOptions{}, Limits{}, fs.ErrNotExist, ""},
		{"an empty file", writeFile(t, "e", nil), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "no tar"},
		{"no tar", writeFile(t, "e", []byte(strings.Repeat("text", 1000))), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "no tar"},
		{"half a tar", writeFile(t, "h", root[:1000]), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "ends early"},
		{"half a gzip", writeFile(t, "h", gz(t, root)[:60]), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "ends early"},
		{"xz", writeFile(t, "x", []byte("\xfd7zXZ\x00.....")), ImportOptions{}, Limits{}, isolation.ErrUnsupported, "gzip or zstd"},
		{"a FIFO", fifo, ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "regular"},
		{"a device", "/dev/zero", ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "regular"},
		{"an empty directory", t.TempDir(), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "neither index.json"},
		{"a large root", writeFile(t, "r", root), ImportOptions{}, Limits{LayerBytes: 1000}, isolation.ErrResourceExhausted, "1000"},
		{"a large file", writeFile(t, "r", gz(t, root)), ImportOptions{}, Limits{BlobBytes: 50}, isolation.ErrResourceExhausted, "50"},
		{"many entries", writeFile(t, "r", mkTar(t, ent{name: "x"}, ent{name: "y"}, ent{name: "z"}, ent{name: "bin/"})), ImportOptions{}, Limits{LayerEntries: 3}, isolation.ErrResourceExhausted, "3 entries"},
		{"a config for what has one", mkLayout(func(string) {}), ImportOptions{Config: &RunConfig{}}, Limits{}, isolation.ErrInvalidArgument, "own"},
		{"a selection of a root", writeFile(t, "r", root), ImportOptions{Select: "x"}, Limits{}, isolation.ErrInvalidArgument, "root filesystem"},
		{"a bad name", writeFile(t, "r", root), ImportOptions{Name: "Not A Name"}, Limits{}, isolation.ErrInvalidArgument, "no image name"},
		{"a layer that is not there", mkLayout(func(dir string) { os.Remove(blob(dir, layer)) }), ImportOptions{}, Limits{}, fs.ErrNotExist, ""},
		{"another layer", mkLayout(func(dir string) { os.WriteFile(blob(dir, layer), []byte("xx"), 0o600) }), ImportOptions{}, Limits{}, ErrDigest, "2 bytes"},
		{"a layer out of the layout", mkLayout(func(dir string) {
			b := readFile(t, blob(dir, layer))
			os.WriteFile(filepath.Join(filepath.Dir(dir), "out"), b, 0o600)
			os.Remove(blob(dir, layer))
			os.Symlink("../../../out", blob(dir, layer))
		}), ImportOptions{}, Limits{}, nil, "escapes"},
		{"a FIFO in a layout", mkLayout(func(dir string) { os.Remove(blob(dir, layer)); syscall.Mkfifo(blob(dir, layer), 0o600) }), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "regular"},
		{"an index that is a link", mkLayout(func(dir string) {
			os.Remove(filepath.Join(dir, "index.json"))
			os.Symlink(secret, filepath.Join(dir, "index.json"))
		}), ImportOptions{}, Limits{}, nil, "escapes"},
		{"a path out of an archive", docker(`[{"Config":"../../../../../../` + secret + `","Layers":[]}]`), ImportOptions{}, Limits{}, fs.ErrNotExist, ""},
		{"an absolute path", docker(`[{"Config":"` + secret + `","Layers":[]}]`), ImportOptions{}, Limits{}, fs.ErrNotExist, ""},
		{"a link out of an archive", docker(`[{"Config":"c","Layers":[]}]`, ent{name: "c", typ: tar.TypeSymlink, link: secret}), ImportOptions{}, Limits{}, fs.ErrNotExist, ""},
		{"a loop of links", docker(`[{"Config":"c","Layers":[]}]`, ent{name: "c", typ: tar.TypeSymlink, link: "d"}, ent{name: "d", typ: tar.TypeSymlink, link: "c"}), ImportOptions{}, Limits{}, fs.ErrNotExist, ""},
		{"the same layer often", docker(`[{"Config":"config.json","Layers":["` + strings.Repeat(`config.json","`, 200) + `config.json"]}]`), ImportOptions{}, Limits{}, isolation.ErrResourceExhausted, "201 layers"},
		{"fewer layers than the config has", docker(`[{"Config":"config.json","Layers":[]}]`), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "0 layers"},
		{"a layer that is none", docker(`[{"Config":"config.json","Layers":["config.json"]}]`), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, ""},
		{"no json", docker(`[`), ImportOptions{}, Limits{}, isolation.ErrInvalidArgument, "manifest.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, c.limits)
			img, err := s.Import(context.Background(), c.path, c.o)
			if err == nil || c.class != nil && !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%+v %v; want class %v and %q", img, err, c.class, c.text)
			}
			invisible(t, s)
			vanishes(t, s)
		})
	}
}

// TestUser looks users up in what the layers show on top of each other.
func TestUser(t *testing.T) {
	passwd := func(lines string) ent { return ent{name: "etc/passwd", body: lines} }
	const one = "root:x:0:0:::\napp:x:7:8:::\nbad:x:-1:x:::\nshort:x:1\n9:x:11:12:::\n"
	base := mkTar(t, ent{name: "etc/"}, passwd(one), ent{name: "etc/group", body: "staff:x:50:\n"})
	for _, c := range []struct {
		name   string
		top    []ent
		user   string
		uid    int
		gid    int
		unsure bool
	}{
		{name: "nobody said", user: "", uid: 0, gid: 0},
		{name: "a name", user: "app", uid: 7, gid: 8},
		{name: "a number that has a group", user: "7", uid: 7, gid: 8},
		{name: "a number that has none", user: "4711", uid: 4711, gid: 0},
		{name: "a name that is a number", user: "9", uid: 11, gid: 12},
		{name: "a group", user: "app:staff", uid: 7, gid: 50},
		{name: "numbers", user: "1:2", uid: 1, gid: 2},
		{name: "an unknown name", user: "who", unsure: true},
		{name: "an unknown group", user: "app:who", unsure: true},
		{name: "a bad line", user: "bad", unsure: true},
		{name: "below zero", user: "-1", unsure: true},
		{name: "another layer's", top: []ent{passwd("app:x:1:2:::\n")}, user: "app", uid: 1, gid: 2},
		{name: "removed", top: []ent{{name: "etc/.wh.passwd"}}, user: "app", unsure: true},
		{name: "removed with its directory", top: []ent{{name: ".wh.etc"}}, user: "app", unsure: true},
		{name: "hidden by an opaque directory", top: []ent{{name: "etc/"}, {name: "etc/.wh..wh..opq"}}, user: "app", unsure: true},
		{name: "a link", top: []ent{{name: "etc/passwd", typ: tar.TypeSymlink, link: "/etc/passwd"}}, user: "app", unsure: true},
		{name: "a link above", top: []ent{{name: "etc", typ: tar.TypeSymlink, link: "/etc"}}, user: "app", unsure: true},
		{name: "a FIFO", top: []ent{{name: "etc/passwd", typ: tar.TypeFifo}}, user: "app", unsure: true},
		{name: "endless", top: []ent{passwd(strings.Repeat("x", 2<<20))}, user: "app", unsure: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			layers := []v1.Layer{plainLayer(base)}
			if c.top != nil {
				layers = append(layers, plainLayer(mkTar(t, c.top...)))
			}
			path := filepath.Join(t.TempDir(), "i.tar")
			writeDockerArchive(t, path, mkImage(t, "", layers...), "u:1")
			s := newStore(t, Limits{})
			img, err := s.Import(context.Background(), path, ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			uid, gid, ok := rootFS(t, s, img).User(c.user)
			if ok == c.unsure || ok && (uid != c.uid || gid != c.gid) {
				t.Errorf("%d:%d %v", uid, gid, ok)
			}
		})
	}
}
