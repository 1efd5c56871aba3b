package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	fakeregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// ent is an entry of a tar made here.
type ent struct {
	name, body, link string
	typ              byte // 0: a file, or a directory if the name ends in a slash
	mode             int64
	uid, gid         int
	pax              map[string]string
}

func mkTar(t testing.TB, list ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range list {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid, Size: int64(len(e.body)), PAXRecords: e.pax}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// layerOf is a layer whose bytes are b, which hold the tar.
type layerOf struct {
	v1.Layer
	tar []byte
}

func (l layerOf) DiffID() (v1.Hash, error) { return v1.NewHash(digestBytes(l.tar)) }
func (l layerOf) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.tar)), nil
}

func gzLayer(t testing.TB, tarBytes []byte) v1.Layer {
	return layerOf{static.NewLayer(gz(t, tarBytes), types.OCILayer), tarBytes}
}

func zstLayer(t testing.TB, tarBytes []byte) v1.Layer {
	return layerOf{static.NewLayer(zst(t, tarBytes), types.OCILayerZStd), tarBytes}
}

func plainLayer(tarBytes []byte) v1.Layer {
	return layerOf{static.NewLayer(tarBytes, types.OCIUncompressedLayer), tarBytes}
}

func mkImage(t testing.TB, platform string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	p, err := parsePlatform(platform)
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture, c.Variant = p.OS, p.Architecture, p.Variant
	c.Config = v1.Config{
		Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"true"}, Env: []string{"A=1", "PATH=/bin"}, User: "1000:1000", WorkingDir: "/work",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, StopSignal: "SIGINT", Labels: map[string]string{"k": "v"},
	}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// testRegistry is a registry on a loopback address, which can be told to behave
// badly.
type testRegistry struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	wrap     func(next http.Handler, w http.ResponseWriter, r *http.Request) // guarded by mu
	requests []string                                                        // guarded by mu; method, path, range
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	next := fakeregistry.New(fakeregistry.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, strings.TrimSpace(req.Method+" "+req.URL.Path+" "+req.Header.Get("Range")))
		wrap := r.wrap
		r.mu.Unlock()
		if wrap == nil {
			next.ServeHTTP(w, req)
		} else {
			wrap(next, w, req)
		}
	}))
	t.Cleanup(r.Close)
	r.host = strings.TrimPrefix(r.URL, "http://")
	return r
}

func (r *testRegistry) behave(f func(next http.Handler, w http.ResponseWriter, r *http.Request)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrap = f
}

// blobGets lists the GETs of blobs since the last call.
func (r *testRegistry) blobGets() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		if strings.HasPrefix(q, "GET ") && strings.Contains(q, "/blobs/") {
			list = append(list, q)
		}
	}
	r.requests = nil
	return list
}

func (r *testRegistry) push(t testing.TB, repo string, what any) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	switch x := what.(type) {
	case v1.Image:
		err = remote.Write(ref, x)
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, x)
	default:
		err = fmt.Errorf("%T", what)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

func newStore(t testing.TB, limits Limits) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "images"), limits)
}

func openStore(t testing.TB, dir string, limits Limits) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var anonymous = authn.NewMultiKeychain()

func pull(t testing.TB, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func rootFS(t testing.TB, s *Store, img Image) *RootFS {
	t.Helper()
	r, err := s.RootFS(context.Background(), img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	return r
}

// require skips a test that this host cannot run, or fails it if asked to.
func require(t testing.TB, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("AXO_REQUIRE") != "" {
		t.Fatalf("needs %s", what)
	}
	t.Skipf("SKIPPED, NOT PROVED: needs %s", what)
}

func isRoot() bool { return runtime.GOOS == "linux" && os.Geteuid() == 0 }

// leftovers lists what a store has beyond blobs, layers and the index.
func leftovers(t testing.TB, s *Store) (list []string) {
	t.Helper()
	for _, d := range []string{dirTemp, dirLeases, dirLocks, dirIngest} {
		entries, err := os.ReadDir(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), filepath.Base(s.temp)) {
				list = append(list, d+"/"+e.Name())
			}
		}
	}
	entries, err := os.ReadDir(s.temp)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, "own/"+e.Name())
	}
	return list
}

// tarList reads a tar's entries back.
func tarList(t testing.TB, b []byte) (list []ent) {
	t.Helper()
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, ent{name: h.Name, body: string(body), link: h.Linkname, typ: h.Typeflag, mode: h.Mode, uid: h.Uid, gid: h.Gid, pax: h.PAXRecords})
	}
}

// writeDockerArchive writes what docker save did before version 25.
func writeDockerArchive(t testing.TB, path string, img v1.Image, tag string) {
	t.Helper()
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var list []ent
	for i, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%064d/layer.tar", i))
		list = append(list, ent{name: fmt.Sprintf("%064d/", i)}, ent{name: names[i], body: string(b)})
	}
	m, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{tag}, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	list = append(list, ent{name: "config.json", body: string(config)}, ent{name: "manifest.json", body: string(m)})
	if err := os.WriteFile(path, mkTar(t, list...), 0o644); err != nil {
		t.Fatal(err)
	}
}
