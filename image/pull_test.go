package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/axocoatl/isolation"
)

func TestPull(t *testing.T) {
	reg := newRegistry(t)
	base := mkTar(t, ent{name: "etc/"}, ent{name: "etc/a", body: "base"}, ent{name: "bin/"}, ent{name: "bin/x", body: "#!", mode: 0o755})
	top := mkTar(t, ent{name: "etc/b", body: "top"})
	third := mkTar(t, ent{name: "c", body: "c"})
	ref := reg.push(t, "some/image:1", mkImage(t, "", gzLayer(t, base), zstLayer(t, top), plainLayer(third)))
	s := newStore(t, Limits{})
	var events []Event
	img, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Progress: func(e Event) { events = append(events, e) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(reg.blobGets()) != 4 {
		t.Error("not each blob was fetched once")
	}
	if !slices.Equal(img.Names, []string{ref}) || img.Platform != HostPlatform() || len(img.Layers) != 3 || img.UnpackedSize != 10 {
		t.Errorf("%+v", img)
	}
	c := img.Config
	if !slices.Equal(c.Entrypoint, []string{"/bin/sh", "-c"}) || !slices.Equal(c.ExposedPorts, []string{"53/udp", "80/tcp"}) || c.User != "1000:1000" ||
		c.WorkingDir != "/work" || c.StopSignal != "SIGINT" || c.Labels["k"] != "v" || !slices.Equal(c.Cmd, []string{"true"}) || !slices.Equal(c.Env, []string{"A=1", "PATH=/bin"}) {
		t.Errorf("%+v", c)
	}
	r := rootFS(t, s, img)
	want := []string{"etc/a", "etc/b", "c"}
	if len(r.Layers) != 3 {
		t.Fatal(r.Layers)
	}
	for i, n := range want {
		if _, err := os.Stat(filepath.Join(r.Layers[i], n)); err != nil {
			t.Error(err)
		}
	}
	count := map[Stage]int{}
	for _, e := range events {
		count[e.Stage]++
	}
	if count[StageResolved] != 1 || count[StageDownloaded] != 3 || count[StageUnpacked] != 3 {
		t.Errorf("%v", count)
	}
	// A second pull asks for the manifest and fetches nothing.
	if again := pull(t, s, ref); again.Digest != img.Digest {
		t.Error(again)
	}
	if gets := reg.blobGets(); len(gets) != 0 {
		t.Errorf("fetched again: %v", gets)
	}
	r.Release()
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// refused pulls and expects an error of a class that says a text, and that
// nothing of the image can be seen.
func refused(t *testing.T, s *Store, ref string, o PullOptions, class error, text string) {
	t.Helper()
	if o.Keychain == nil {
		o.Keychain = anonymous
	}
	_, err := s.Pull(context.Background(), ref, o)
	if !errors.Is(err, class) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v; want class %v and %q", err, class, text)
	}
	invisible(t, s)
}

// invisible checks that there is no image, and nothing that is not a whole blob
// or layer or an unfinished download.
func invisible(t *testing.T, s *Store) {
	t.Helper()
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("images: %v %v", list, err)
	}
	left := slices.DeleteFunc(leftovers(t, s), func(n string) bool { return strings.HasPrefix(n, dirIngest+"/") })
	if len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	whole(t, s)
}

// whole checks that each blob has the digest that it is named by, and each layer
// its description.
func whole(t *testing.T, s *Store) {
	t.Helper()
	blobs, err := os.ReadDir(s.path(dirBlobs))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range blobs {
		if b, err := os.ReadFile(s.path(dirBlobs, e.Name())); err != nil || digestBytes(b) != "sha256:"+e.Name() {
			t.Errorf("blob %s: %s %v", e.Name(), digestBytes(b), err)
		}
	}
	layers, err := os.ReadDir(s.path(dirLayers))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range layers {
		if info, err := readLayerInfo(s.path(dirLayers, e.Name())); err != nil || info.DiffID != DiffID("sha256:"+e.Name()) && !strings.HasPrefix(e.Name(), "stack-") {
			t.Errorf("layer %s: %+v %v", e.Name(), info, err)
		}
	}
}

// vanishes removes all images and checks that gc leaves nothing.
func vanishes(t *testing.T, s *Store) {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if _, err := s.Remove(context.Background(), img.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.GC(context.Background(), GCOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dirBlobs, dirLayers} {
		if entries, err := os.ReadDir(s.path(d)); err != nil || len(entries) != 0 {
			t.Errorf("%s: %v %v", d, entries, err)
		}
	}
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPullInterruptedAtAnyByte ends a pull after each byte of a layer. Nothing of
// the image is seen then, and the next pull asks for the rest alone.
func TestPullInterruptedAtAnyByte(t *testing.T) {
	reg := newRegistry(t)
	layer := gz(t, mkTar(t, ent{name: "f", body: "body"}))
	img := mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "f", body: "body"})))
	ref := reg.push(t, "cut:1", img)
	path := "/blobs/" + digestBytes(layer)
	s := newStore(t, Limits{})
	step := 1
	if testing.Short() {
		step = 17
	}
	for n := 0; n <= len(layer); n += step {
		ctx, cancel := context.WithCancel(context.Background())
		reg.behave(func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, path) || r.Method != http.MethodGet {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(layer)))
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write(layer[:n])
			_ = http.NewResponseController(w).Flush()
			// The client gives up when it has got what was sent.
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
				st, err := os.Stat(s.path(dirIngest, strings.TrimPrefix(digestBytes(layer), "sha256:")))
				if err == nil && st.Size() == int64(n) || n == len(layer) && s.hasBlob(digestBytes(layer), int64(n)) {
					break
				}
			}
			cancel()
			<-r.Context().Done()
		})
		_, err := s.Pull(ctx, ref, PullOptions{Keychain: anonymous})
		if err == nil && n < len(layer) || err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if err != nil {
			invisible(t, s)
		}
		reg.behave(nil)
		reg.blobGets()
		if again := pull(t, s, ref); len(again.Layers) != 1 {
			t.Fatalf("after %d bytes: %+v", n, again)
		}
		// The config was there already.
		want := "GET /v2/cut" + path
		if n > 0 {
			want += fmt.Sprintf(" bytes=%d-%d", n, len(layer)-1)
		}
		if gets := reg.blobGets(); n < len(layer) && !slices.Equal(gets, []string{want}) || n == len(layer) && len(gets) != 0 {
			t.Fatalf("after %d bytes: asked for %q, want %q", n, gets, want)
		}
		vanishes(t, s)
		cancel()
	}
}

// TestPullTriesAgain: connections that break are taken up in the same pull, as
// long as they bring something.
func TestPullTriesAgain(t *testing.T) {
	tarBytes := mkTar(t, ent{name: "f", body: strings.Repeat("0123456789", 500)})
	cut := func(at int) func(http.Handler, http.ResponseWriter, *http.Request) {
		return func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
				w = &cutWriter{w, at}
			}
			next.ServeHTTP(w, r)
		}
	}
	for _, c := range []struct {
		name   string
		behave func(http.Handler, http.ResponseWriter, *http.Request)
		text   string // of the error
	}{
		{"breaks", cut(1000), ""},
		{"never comes", cut(0), "after 0 of"},
		{"no ranges", noRanges, ""},
		{"another range", func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 7-9/10")
				w.WriteHeader(http.StatusPartialContent)
				return
			}
			cut(5000)(next, w, r)
		}, "after 5000 of"},
		{"fails at times", func() func(http.Handler, http.ResponseWriter, *http.Request) {
			var n atomic.Int32
			return func(next http.Handler, w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") && n.Add(1)%3 != 0 {
					http.Error(w, "busy", http.StatusServiceUnavailable)
					return
				}
				next.ServeHTTP(w, r)
			}
		}(), ""},
		{"always fails", func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				http.Error(w, "broken", http.StatusInternalServerError)
				return
			}
			next.ServeHTTP(w, r)
		}, "500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := newRegistry(t)
			ref := reg.push(t, "again", mkImage(t, "", plainLayer(tarBytes)))
			reg.behave(c.behave)
			s := newStore(t, Limits{})
			s.backoff = 100 * time.Microsecond
			if c.text != "" {
				refused(t, s, ref, PullOptions{}, isolation.ErrUnavailable, c.text)
				return
			}
			retries := 0
			img, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Progress: func(e Event) {
				if e.Stage == StageRetry {
					retries++
				}
			}})
			if err != nil || img.UnpackedSize != 5000 {
				t.Fatal(img, err)
			}
			if retries == 0 && c.name == "breaks" {
				t.Error("nothing was tried again")
			}
			whole(t, s)
		})
	}
}

// cutWriter breaks the connection after so many bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	if c.left -= n; c.left == 0 {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// noRanges breaks the first answers, and sends all to whom asks for a part.
func noRanges(next http.Handler, w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Range") == "" && strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
		next.ServeHTTP(&cutWriter{w, 3000}, r)
		return
	}
	r.Header.Del("Range")
	next.ServeHTTP(w, r)
}

// TestPullLies: whatever a registry sends in the place of something, its digest
// tells, and nothing of it is seen.
func TestPullLies(t *testing.T) {
	good := mkTar(t, ent{name: "f", body: "body"})
	layer := gz(t, good)
	replace := func(suffix string, body []byte) func(http.Handler, http.ResponseWriter, *http.Request) {
		return func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, suffix) && r.Method == http.MethodGet {
				_, _ = w.Write(body)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	other := slices.Clone(layer)
	other[len(other)/2] ^= 1
	for name, body := range map[string][]byte{"another layer": other, "a longer layer": append(slices.Clone(layer), 0)} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			ref := reg.push(t, "lies", mkImage(t, "", gzLayer(t, good)))
			reg.behave(replace(digestBytes(layer), body))
			s := newStore(t, Limits{})
			refused(t, s, ref, PullOptions{}, ErrDigest, "")
			// It is not taken up later either.
			reg.behave(nil)
			pull(t, s, ref)
			whole(t, s)
		})
	}
	t.Run("what a crash left", func(t *testing.T) {
		reg := newRegistry(t)
		ref := reg.push(t, "lies", mkImage(t, "", gzLayer(t, good)))
		s := newStore(t, Limits{})
		if err := os.WriteFile(s.path(dirIngest, strings.TrimPrefix(digestBytes(layer), "sha256:")), make([]byte, 10), 0o600); err != nil {
			t.Fatal(err)
		}
		pull(t, s, ref)
		whole(t, s)
	})
	t.Run("another config", func(t *testing.T) {
		reg := newRegistry(t)
		img := mkImage(t, "", gzLayer(t, good))
		ref := reg.push(t, "lies", img)
		raw, err := img.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		reg.behave(replace(digestBytes(raw), bytes.Replace(raw, []byte("1000"), []byte("1001"), 1)))
		refused(t, newStore(t, Limits{}), ref, PullOptions{}, ErrDigest, "config")
	})
	t.Run("another manifest", func(t *testing.T) {
		reg := newRegistry(t)
		img := mkImage(t, "", gzLayer(t, good))
		reg.push(t, "lies", img)
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "evil"}))).RawManifest()
		if err != nil {
			t.Fatal(err)
		}
		reg.behave(func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			replace(digest.String(), raw)(next, w, r)
		})
		s := newStore(t, Limits{})
		if _, err := s.Pull(context.Background(), reg.host+"/lies@"+digest.String(), PullOptions{Keychain: anonymous}); err == nil || !strings.Contains(err.Error(), "digest") {
			t.Error(err)
		}
		invisible(t, s)
	})
	t.Run("another diff id", func(t *testing.T) {
		reg := newRegistry(t)
		l := layerOf{static.NewLayer(layer, types.OCILayer), mkTar(t, ent{name: "f", body: "else"})}
		ref := reg.push(t, "lies", mkImage(t, "", l))
		s := newStore(t, Limits{})
		refused(t, s, ref, PullOptions{}, ErrDigest, "the config says")
		if layers, err := os.ReadDir(s.path(dirLayers)); err != nil || len(layers) != 0 {
			t.Error(layers, err)
		}
	})
}

// TestPullRefuses what is no image, or costs too much.
func TestPullRefuses(t *testing.T) {
	layer := gzLayer(t, mkTar(t, ent{name: "f", body: strings.Repeat("x", 2000)}))
	serve := func(media, body string) func(http.Handler, http.ResponseWriter, *http.Request) {
		return func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", media)
				_, _ = io.WriteString(w, body)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
	const oci = string(types.OCIManifestSchema1)
	for _, c := range []struct {
		name   string
		behave func(http.Handler, http.ResponseWriter, *http.Request)
		limits Limits
		class  error
		text   string
	}{
		{"many layers", nil, Limits{Layers: 1}, isolation.ErrResourceExhausted, "2 layers"},
		{"a large blob", nil, Limits{BlobBytes: 30}, isolation.ErrResourceExhausted, "allowed are 30"},
		{"a large image", nil, Limits{ImageBytes: 1000}, isolation.ErrResourceExhausted, "1000"},
		{"a large config", nil, Limits{ManifestBytes: 100}, isolation.ErrResourceExhausted, ""},
		{"an endless manifest", func(_ http.Handler, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", oci)
			for range 1000 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, Limits{}, isolation.ErrResourceExhausted, ""},
		{"no json", serve(oci, "{"), Limits{}, isolation.ErrInvalidArgument, "manifest"},
		{"schema 1", serve("application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1}`), Limits{}, isolation.ErrUnsupported, "schema 1"},
		{"no image", serve(oci, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[]}`), Limits{}, isolation.ErrInvalidArgument, "helm"},
		{"a digest with dots", serve(oci, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:../../../../../../../../../../../../../../../../../../../../../etc/pas"},"layers":[]}`), Limits{}, isolation.ErrInvalidArgument, "manifest"},
		{"another hash", serve(oci, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha512:`+strings.Repeat("ab", 64)+`"},"layers":[]}`), Limits{}, isolation.ErrInvalidArgument, ""},
		{"a negative size", serve(oci, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":-2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[]}`), Limits{}, isolation.ErrResourceExhausted, "-2"},
		{"an unknown layer", serve(oci, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[{"mediaType":"text/html","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}]}`), Limits{}, isolation.ErrInvalidArgument, "text/html"},
		{"an index of itself", serve(string(types.OCIImageIndex), `{"schemaVersion":2,"manifests":[]}`), Limits{}, isolation.ErrNotFound, "no image at all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := newRegistry(t)
			ref := reg.push(t, "bad", mkImage(t, "", layer, gzLayer(t, mkTar(t, ent{name: "g"}))))
			reg.behave(c.behave)
			refused(t, newStore(t, c.limits), ref, PullOptions{}, c.class, c.text)
		})
	}
	reg := newRegistry(t)
	s := newStore(t, Limits{})
	refused(t, s, reg.host+"/none:1", PullOptions{}, isolation.ErrNotFound, "none:1")
	refused(t, s, "UPPER CASE", PullOptions{}, isolation.ErrInvalidArgument, "no image name")
	refused(t, s, reg.host+"/none:1", PullOptions{Platform: "a/b/c/d"}, isolation.ErrInvalidArgument, "platform")
	reg.Close()
	refused(t, s, reg.host+"/none:1", PullOptions{}, isolation.ErrUnavailable, "")
}

// TestPullLimitsBombs: what is small in the registry and large unpacked.
func TestPullLimitsBombs(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "bomb", mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "f", body: string(make([]byte, 8<<20))}))))
	s := newStore(t, Limits{LayerBytes: 1 << 20})
	refused(t, s, ref, PullOptions{}, isolation.ErrResourceExhausted, "")
	if freed, err := s.GC(context.Background(), GCOptions{}); err != nil || freed.Blobs == 0 {
		t.Error(freed, err)
	}
}

func TestPlatforms(t *testing.T) {
	reg := newRegistry(t)
	one := func(platform, body string) mutate.IndexAddendum {
		img := mkImage(t, platform, gzLayer(t, mkTar(t, ent{name: "p", body: body})))
		p, err := parsePlatform(platform)
		if err != nil {
			t.Fatal(err)
		}
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}}
	}
	attestation := one("linux/amd64", "attestation")
	attestation.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	x := mutate.AppendManifests(empty.Index, attestation, one("linux/amd64/v3", "v3"), one("linux/amd64", "amd64"), one("linux/arm64/v8", "arm64"), one("linux/arm/v6", "v6"), one("linux/arm/v7", "v7"), one("windows/amd64", "windows"))
	ref := reg.push(t, "multi", x)
	digest, err := x.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for platform, want := range map[string]string{
		"linux/amd64": "amd64", "amd64": "amd64", "x86_64": "amd64", "linux/amd64/v3": "v3", "linux/arm64": "arm64", "aarch64": "arm64", "linux/arm64/v8": "arm64",
		"linux/arm": "v7", "linux/arm/v6": "v6", "windows/amd64": "windows",
	} {
		s := newStore(t, Limits{})
		img, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Platform: platform})
		if err != nil {
			t.Errorf("%s: %v", platform, err)
			continue
		}
		r := rootFS(t, s, img)
		if b, err := os.ReadFile(filepath.Join(r.Layers[0], "p")); err != nil || string(b) != want {
			t.Errorf("%s is %q, want %q (%v)", platform, b, want, err)
		}
		// The index's digest means it, too.
		if again, err := s.Get(digest.String()); err != nil || again.Digest != img.Digest || again.Index != digest.String() {
			t.Errorf("%+v %v", again, err)
		}
	}
	s := newStore(t, Limits{})
	refused(t, s, ref, PullOptions{Platform: "linux/s390x"}, isolation.ErrNotFound, "linux/arm64")
	single := reg.push(t, "single", mkImage(t, "linux/s390x", gzLayer(t, mkTar(t, ent{name: "p"}))))
	refused(t, s, single, PullOptions{}, isolation.ErrFailedPrecondition, "linux/s390x")
}

// TestCredentials: from docker's file, by basic and by token authentication.
func TestCredentials(t *testing.T) {
	basic := func(r *http.Request) bool {
		u, p, ok := r.BasicAuth()
		return ok && u == "user" && p == "secret"
	}
	for _, scheme := range []string{"basic", "token"} {
		t.Run(scheme, func(t *testing.T) {
			reg := newRegistry(t)
			ref := reg.push(t, "private", mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "f"}))))
			var scopes []string
			reg.behave(func(next http.Handler, w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token" && basic(r):
					scopes = append(scopes, r.URL.Query().Get("scope"))
					_, _ = io.WriteString(w, `{"token":"the-token"}`)
				case scheme == "basic" && basic(r), scheme == "token" && r.Header.Get("Authorization") == "Bearer the-token":
					next.ServeHTTP(w, r)
				default:
					challenge := `Basic realm="x"`
					if scheme == "token" {
						challenge = `Bearer realm="` + reg.URL + `/token",service="registry"`
					}
					w.Header().Set("WWW-Authenticate", challenge)
					w.WriteHeader(http.StatusUnauthorized)
				}
			})
			config := t.TempDir()
			t.Setenv("DOCKER_CONFIG", config)
			login := func(password string) {
				auth := base64.StdEncoding.EncodeToString([]byte("user:" + password))
				if err := os.WriteFile(filepath.Join(config, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, reg.host, auth), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := newStore(t, Limits{})
			refused(t, s, ref, PullOptions{}, isolation.ErrUnauthenticated, "docker login")
			login("wrong")
			refused(t, s, ref, PullOptions{Keychain: authn.DefaultKeychain}, isolation.ErrUnauthenticated, "")
			login("secret")
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				t.Fatal(err)
			}
			if scheme == "token" && !slices.Contains(scopes, "repository:private:pull") {
				t.Errorf("asked for %q", scopes)
			}
		})
	}
}

// TestWhereARegistrySends: to plain HTTP and to private networks nothing is sent,
// whoever says so.
func TestWhereARegistrySends(t *testing.T) {
	g := &guard{next: roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New("sent") })}
	for url, want := range map[string]string{
		"http://registry.example/v2/": "plain HTTP", "http://169.254.169.254/latest": "plain HTTP", "https://169.254.169.254/latest": "private",
		"https://10.1.2.3/token": "private", "https://192.168.0.1:8443/": "private", "https://127.0.0.1/": "private", "https://[::1]:5000/": "private",
		"http://localhost/": "private", "https://[fe80::1]/": "private", "https://0.0.0.0/": "private", "https://registry.example/v2/": "sent", "https://[fd00::1]/": "private",
	} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.RoundTrip(req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
	// A registry of a private network may: that is where its parts are.
	g.inside, g.plain = true, true
	req, _ := http.NewRequest(http.MethodGet, "http://10.1.2.3/", nil)
	if _, err := g.RoundTrip(req); err == nil || err.Error() != "sent" {
		t.Error(err)
	}
	for host, want := range map[string]bool{"localhost:5000": true, "127.0.0.1": true, "[::1]:80": true, "10.0.0.1:1": true, "ghcr.io": false, "index.docker.io:443": false, "8.8.8.8": false} {
		if inside(host) != want {
			t.Errorf("inside(%s) is %v", host, !want)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestPullProgress: what is told adds up, and comes one at a time.
func TestPullProgress(t *testing.T) {
	reg := newRegistry(t)
	body := make([]byte, 300<<10)
	rand.NewChaCha8([32]byte{}).Read(body)
	ref := reg.push(t, "big", mkImage(t, "", plainLayer(mkTar(t, ent{name: "f", body: string(body)})), gzLayer(t, mkTar(t, ent{name: "g"}))))
	s := newStore(t, Limits{})
	var busy atomic.Bool
	last := map[string]Event{}
	_, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Progress: func(e Event) {
		if busy.Swap(true) {
			t.Error("two at a time")
		}
		defer busy.Store(false)
		if old := last[e.Digest]; e.Stage == StageDownload && e.Done < old.Done || e.Done > e.Total {
			t.Errorf("%+v after %+v", e, old)
		}
		last[e.Digest] = e
	}})
	if err != nil {
		t.Fatal(err)
	}
	for digest, e := range last {
		if e.Stage != StageUnpacked && e.Stage != StageResolved {
			t.Errorf("%s ends with %+v", digest, e)
		}
	}
	if len(last) != 3 {
		t.Errorf("%d blobs", len(last))
	}
}
