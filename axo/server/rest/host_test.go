package rest_test

import (
	"context"
	"fmt"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/image"
)

// fakeImages is a store with one image, x, which is pulled again; registries and the
// real store are package image's to test.
type fakeImages struct{}

var theImage = image.Image{Digest: "sha256:00", Names: []string{"docker.io/library/x:latest"}, Platform: "linux/amd64"}

func (fakeImages) List() ([]image.Image, error) { return []image.Image{theImage}, nil }

func (fakeImages) Get(ref string) (image.Image, error) {
	if ref != "x" {
		return image.Image{}, fmt.Errorf("image %s: %w", ref, isolation.ErrNotFound)
	}
	return theImage, nil
}

func (f fakeImages) Pull(_ context.Context, ref string, o image.PullOptions) (image.Image, error) {
	if o.Progress != nil {
		o.Progress(image.Event{Stage: image.StageDownload, Digest: "sha256:00", Done: 1, Total: 2})
	}
	return f.Get(ref)
}

func (f fakeImages) Remove(_ context.Context, ref string) (image.Removed, error) {
	i, err := f.Get(ref)
	return image.Removed{Digest: i.Digest, Names: i.Names, Image: true}, err
}

func (fakeImages) GC(context.Context, image.GCOptions) (image.Freed, error) {
	return image.Freed{}, nil
}

type fakeTemplates struct{}

func (fakeTemplates) List() ([]api.Template, error) {
	return []api.Template{{Name: "default"}, {Name: "image-0123456789abcdef0123"}, {Name: "default-m2048"}}, nil
}

func (fakeTemplates) Build(_ context.Context, b api.BuildTemplate) (api.Template, error) {
	return api.Template{Name: b.Name}, nil
}

func (fakeTemplates) Remove(string, string) error { return nil }
