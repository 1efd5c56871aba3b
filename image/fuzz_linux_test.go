package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// fuzzLimits keep each try small.
var fuzzLimits = Limits{BlobBytes: 1 << 20, ImageBytes: 1 << 20, LayerBytes: 1 << 20, FileBytes: 1 << 20, LayerEntries: 200, PathBytes: 300, Depth: 20, Layers: 5, ManifestBytes: 1 << 16}

// FuzzUnpack unpacks what it is given below a directory with secrets beside it:
// nothing outside changes, what is inside keeps to the limits, and all of it can
// be removed.
func FuzzUnpack(f *testing.F) {
	link := func(name, to string) ent { return ent{name: name, link: to, typ: tar.TypeSymlink} }
	seeds := [][]byte{
		mkTar(f, ent{name: "a/"}, ent{name: "a/b", body: "x"}, ent{name: "a/.wh.c"}, ent{name: ".wh.a"}, ent{name: "d/.wh..wh..opq"}),
		mkTar(f, link("l", "../.."), ent{name: "l/secret", body: "evil"}, ent{name: "h", link: "l/secret", typ: tar.TypeLink}),
		mkTar(f, ent{name: "../secret", body: "x"}), mkTar(f, link("d", "/"), ent{name: "d/", mode: 0o777}, ent{name: "d/x", typ: tar.TypeFifo}),
		mkTar(f, ent{name: "x", pax: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.trusted.overlay.opaque": "y"}}),
		gz(f, mkTar(f, ent{name: "z", body: "z"})), zst(f, mkTar(f, ent{name: "z", body: "z"})),
	}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir, info, _ := unpackDir(t, b, fuzzLimits)
		if info.Bytes > fuzzLimits.LayerBytes || info.Entries > fuzzLimits.LayerEntries+1 {
			t.Errorf("%+v", info)
		}
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
}

// FuzzImport imports what it is given. Either it is an image whose layers can be
// had, or nothing of it is there.
func FuzzImport(f *testing.F) {
	root := mkTar(f, ent{name: "bin/x", body: "x"})
	img := mkImage(f, "", gzLayer(f, root))
	docker := filepath.Join(f.TempDir(), "d.tar")
	writeDockerArchive(f, docker, img, "a:1")
	b, err := os.ReadFile(docker)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range [][]byte{root, gz(f, root), zst(f, root), b, gz(f, b), mkTar(f, ent{name: "index.json", body: `{"schemaVersion":2,"manifests":[{"digest":"sha256:x"}]}`}),
		mkTar(f, ent{name: "manifest.json", body: `[{"Config":"manifest.json","Layers":["manifest.json"]}]`})} {
		f.Add(s)
	}
	store, err := Open(Config{Dir: filepath.Join(f.TempDir(), "images"), Limits: fuzzLimits})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { store.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := store.Import(context.Background(), writeFile(t, "f", b), ImportOptions{})
		if err != nil {
			invisible(t, store)
		} else if r, err := store.RootFS(context.Background(), img); err != nil && len(img.Layers) > 0 {
			t.Error(err)
		} else if err == nil {
			r.User(img.Config.User)
			r.Release()
		}
		vanishes(t, store)
	})
}

// FuzzDocuments parses manifests, indexes and configs: what is accepted has
// nothing in it that could name a file elsewhere.
func FuzzDocuments(f *testing.F) {
	img := mkImage(f, "", gzLayer(f, mkTar(f, ent{name: "x"})))
	raw, err := img.RawManifest()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("a", 64) + `","platform":{"os":"linux","architecture":"amd64"}}]}`))
	s := &Store{dir: "/store", limits: DefaultLimits()}
	want, err := parsePlatform("")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := s.parseManifest(b, types.OCIManifestSchema1); err == nil {
			for _, d := range m.blobs() {
				if p := s.blobPath(d); filepath.Dir(p) != "/store/"+dirBlobs || len(filepath.Base(p)) != 64 {
					t.Errorf("%q is at %q", d, p)
				}
			}
		}
		if x, err := s.parseIndex(b); err == nil {
			_, _ = choose(x, want)
		}
		var c index
		if json.NewDecoder(bytes.NewReader(b)).Decode(&c) == nil {
			_, _ = c.find("sha256:abcd")
		}
	})
}
