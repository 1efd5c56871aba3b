package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/internal/failpoint"
	"github.com/axocoatl/isolation/internal/testprog"
)

// pushImage serves an image of two layers from a registry of its own. The upper
// layer has a file in a directory that it does not name.
func pushImage(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	top := []testprog.RootEntry{{Header: tar.Header{Name: "tmp/f", Mode: 0o644}, Body: "f"}}
	for _, b := range [][]byte{testprog.RootFS(t), testprog.Tar(t, top...)} {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, _ = strings.Cut(image.HostPlatform(), "/")
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/box:1")
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// TestImageKilledAtEachFailpoint kills a pull at every point, and gc. What is
// seen then is whole, the next pull does the rest, and of all that nothing is
// left after gc.
func TestImageKilledAtEachFailpoint(t *testing.T) {
	ref := pushImage(t)
	h := newHost(t, "failpoint")
	axo := func(t *testing.T, point string, args ...string) (string, error) {
		t.Helper()
		cmd := exec.Command(filepath.Join(h.dir, "axo"), append([]string{"--state-dir", h.state}, args...)...)
		cmd.Env = append(os.Environ(), "AXO_FAILPOINT="+point)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil && point == "" {
			t.Fatalf("axo %v: %v %s", args, err, errOut.Bytes())
		}
		return string(out), err
	}
	killed := func(t *testing.T, point string, args ...string) {
		t.Helper()
		_, err := axo(t, point, args...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("was not killed: %v", err)
		}
	}
	images := func(t *testing.T) (list []image.Image) {
		t.Helper()
		out, _ := axo(t, "", "image", "ls", "--json")
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	empty := func(t *testing.T) {
		t.Helper()
		err := filepath.WalkDir(filepath.Join(h.state, "images"), func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != "lock" && d.Name() != "index.json" {
				t.Errorf("left: %s", p)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	for _, point := range failpoint.Image {
		t.Run(point, func(t *testing.T) {
			killed(t, point, "image", "pull", "-q", ref)
			want := 0
			if point == failpoint.ImageNamed {
				want = 1
			}
			if list := images(t); len(list) != want {
				t.Errorf("%d images are seen", len(list))
			}
			axo(t, "", "image", "pull", "-q", ref)
			// What is there is what was pushed, as overlayfs shows it.
			s, err := image.Open(image.Config{Dir: filepath.Join(h.state, "images")})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			img, err := s.Get(ref)
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.RootFS(context.Background(), img)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(r.Layers[1], "tmp/f"))
			if err != nil || string(b) != "f" || len(r.Layers) != 3 {
				t.Errorf("%q %v %v", b, r.Layers, err)
			}
			r.Release()
			axo(t, "", "image", "rm", ref)
			axo(t, "", "image", "gc")
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			empty(t)
		})
	}
	t.Run("killed and forgotten", func(t *testing.T) {
		for _, point := range failpoint.Image[:4] {
			killed(t, point, "image", "pull", "-q", ref)
		}
		axo(t, "", "image", "gc")
		empty(t)
	})
	t.Run(failpoint.ImageTrash, func(t *testing.T) {
		axo(t, "", "image", "pull", "-q", ref)
		killed(t, failpoint.ImageTrash, "image", "rm", ref)
		if list := images(t); len(list) != 0 {
			t.Errorf("%d images are seen", len(list))
		}
		axo(t, "", "image", "gc")
		empty(t)
	})
}
