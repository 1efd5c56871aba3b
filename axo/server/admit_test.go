package server

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/internal/testprog"
)

// What a tenant has built, and the layers that are kept for it, are not there for others,
// by whatever name they come.
func TestImagesAreTheirTenants(t *testing.T) {
	dir := t.TempDir()
	s, err := image.Open(image.Config{Dir: filepath.Join(dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	root := filepath.Join(dir, "root.tar")
	if err := os.WriteFile(root, testprog.RootFS(t), 0o600); err != nil {
		t.Fatal(err)
	}
	add := func(name, user string) image.Image {
		t.Helper()
		img, err := s.Import(t.Context(), root, image.ImportOptions{Name: name, Config: &image.RunConfig{User: user}})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	open := add("box", "1")
	built := add("axo.local/template/t:b", "2")
	kept := add("axo.local/build/cache:0123", "3")
	both := add("axo.local/template/t:c", "4")
	if err := s.Name(t.Context(), both.Digest, "mine"); err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(build.Template{ID: "t", Tenant: "one", Name: "x", Builds: []build.Build{{ID: "b", Status: build.Ready, Image: built.Digest}, {ID: "c", Status: build.Ready, Image: both.Digest}}})
	if err == nil {
		err = errors.Join(os.Mkdir(filepath.Join(dir, "built"), 0o700), os.WriteFile(filepath.Join(dir, "built", "t.json"), record, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	templates, err := build.Open(t.Context(), build.Config{Builder: build.New(build.BuilderConfig{Images: s}), Images: s, Dir: filepath.Join(dir, "built")})
	if err != nil {
		t.Fatal(err)
	}
	defer templates.Close()
	a := &admitted{images: s, built: templates}
	for _, x := range []struct {
		tenant, ref string
		may         bool
	}{
		{"one", "box", true},
		{"two", open.Digest, true},
		{"one/of its own", built.Digest, true},
		{"two", built.Digest, false},
		{"two", built.Digest[:20], false},
		{"two", "axo.local/template/t:b", false},
		{"two/one", built.Digest, false},
		{"one", kept.Digest, false},
		{"two", "axo.local/build/cache:0123", false},
		{"two", "mine", true},
		{"two", "", true},
		{"two", "nothing:1", true}, // the engine says so
	} {
		err := a.own(engine.Request{Spec: isolation.Spec{Tenant: x.tenant, Root: isolation.Root{Image: x.ref}}})
		if x.may && err != nil || !x.may && !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("%s, image %q: %v", x.tenant, x.ref, err)
		}
	}
	a.built = nil
	if err := a.own(engine.Request{Spec: isolation.Spec{Tenant: "one", Root: isolation.Root{Image: built.Digest}}}); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("where none can be built: %v", err)
	}
}
