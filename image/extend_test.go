package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation"
)

func TestExtend(t *testing.T) {
	s := newStore(t, Limits{})
	ctx := context.Background()
	from := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(from, mkTar(t, ent{name: "etc/", mode: 0o755}, ent{name: "etc/a", body: "a"}, ent{name: "bin/sh", body: "x"}), 0o600); err != nil {
		t.Fatal(err)
	}
	base, err := s.Import(ctx, from, ImportOptions{Name: "from", Config: &RunConfig{Cmd: []string{"x"}, User: "7", Labels: map[string]string{"k": "v"}}})
	if err != nil {
		t.Fatal(err)
	}
	more := mkTar(t, ent{name: "etc/b", body: "b"}, ent{name: "etc/.wh.a"})
	c := RunConfig{User: "0", Env: []string{"A=1"}, WorkingDir: "/etc"}
	img, err := s.Extend(ctx, base, ExtendOptions{Name: "more", Layer: bytes.NewReader(more), Config: &c, By: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Layers) != 2 || img.Layers[0] != base.Layers[0] || img.Config.User != "0" || img.Config.Cmd != nil || img.Config.WorkingDir != "/etc" || img.Platform != base.Platform {
		t.Errorf("%+v", img)
	}
	r, err := s.RootFS(ctx, img)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(r.Layers[len(r.Layers)-1], "etc/b")); err != nil || string(b) != "b" {
		// A correction may be the last.
		if b, err = os.ReadFile(filepath.Join(r.Layers[1], "etc/b")); err != nil || string(b) != "b" {
			t.Errorf("%q, %v", b, err)
		}
	}
	r.Release()
	again, err := s.Extend(ctx, base, ExtendOptions{Layer: bytes.NewReader(more), Config: &c})
	if err != nil || again.Digest != img.Digest {
		t.Errorf("the same of the same: %s, %v", again.Digest, err)
	}
	// A layer without entries is none, and what is not said stays.
	same, err := s.Extend(ctx, base, ExtendOptions{Layer: bytes.NewReader(mkTar(t)), Name: "same"})
	if err != nil || len(same.Layers) != 1 || same.Config.User != "7" || same.Config.Labels["k"] != "v" {
		t.Errorf("%+v, %v", same, err)
	}
	if err := s.Name(ctx, img.Digest, "further:tag"); err != nil {
		t.Error(err)
	}
	if got, err := s.Get("further:tag"); err != nil || got.Digest != img.Digest {
		t.Errorf("%s, %v", got.Digest, err)
	}
	for what, o := range map[string]ExtendOptions{
		"a bad name":             {Name: "A B"},
		"no tar":                 {Layer: bytes.NewReader([]byte("no tar at all, and long enough to be looked at"))},
		"a way out of the layer": {Layer: bytes.NewReader(mkTar(t, ent{name: "../x", body: "x"}))},
	} {
		if _, err := s.Extend(ctx, base, o); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
	stop, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Extend(stop, base, ExtendOptions{Layer: bytes.NewReader(more)}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := s.Remove(ctx, "from"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Extend(ctx, base, ExtendOptions{}); err == nil {
		if _, gerr := s.Get(base.Digest); gerr != nil {
			t.Error("an image that is not there is extended")
		}
	}
	if err := s.Name(ctx, "sha256:"+string(bytes.Repeat([]byte{'0'}, 64)), "x"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("a name for nothing: %v", err)
	}
	if Registry("alpine") != "docker.io" || Registry("localhost:5000/x") != "localhost:5000" || Registry("A B") != "" {
		t.Error(Registry("alpine"), Registry("localhost:5000/x"))
	}
}
