package all

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/image"
)

// ImagesDir is the image store's directory in a state directory.
const ImagesDir = "images"

// images finds images in a store. The store is opened for each call: a lease
// needs none that is open, and nothing has to be closed at the end.
type images struct{ dir string }

func (i images) TempDir() (string, func() error, error) {
	s, err := image.Open(image.Config{Dir: i.dir})
	if err != nil {
		return "", nil, err
	}
	dir, err := s.TempDir()
	if err != nil {
		return "", nil, errors.Join(err, s.Close())
	}
	return dir, s.Close, nil
}

func (i images) Open(ctx context.Context, ref string) (_ *root.FS, err error) {
	s, err := image.Open(image.Config{Dir: i.dir})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	img, err := find(s, ref)
	if err != nil {
		return nil, err
	}
	if p := img.Platform; !strings.HasPrefix(p+"/", image.HostPlatform()+"/") && p != "" {
		return nil, fmt.Errorf("image %s is for %s, and this host runs %s; axo image pull --platform %s %s: %w", ref, p, image.HostPlatform(), image.HostPlatform(), ref, isolation.ErrFailedPrecondition)
	}
	r, err := s.RootFS(ctx, img)
	if err != nil {
		return nil, err
	}
	c := img.Config
	uid, gid, ok := r.User(c.User)
	if !ok {
		uid, gid = -1, -1
	}
	return root.New(root.FS{
		Lease: r.Lock(), Digest: img.Digest, Layers: r.Layers, OwnersMapped: r.OwnersMapped, UID: uid, GID: gid,
		Config: root.Config{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir, Volumes: c.Volumes},
	}, r.Release), nil
}

// digest is that of the image that ref means.
func (i images) digest(ref string) (_ string, err error) {
	s, err := image.Open(image.Config{Dir: i.dir})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	img, err := find(s, ref)
	return img.Digest, err
}

func find(s *image.Store, ref string) (image.Image, error) {
	img, err := s.Get(ref)
	if errors.Is(err, isolation.ErrNotFound) {
		err = fmt.Errorf("image %s is not on this host; axo image pull %s fetches it: %w", ref, ref, isolation.ErrNotFound)
	}
	return img, err
}

// resolve names the image of a spec by its digest.
func (i images) resolve(_ context.Context, spec isolation.Spec) (_ isolation.Spec, err error) {
	s, err := image.Open(image.Config{Dir: i.dir})
	if err != nil {
		return spec, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	img, err := find(s, spec.Root.Image)
	if err == nil {
		spec.Root.Image = img.Digest
	}
	return spec, err
}

func imagesIn(stateDir string) images { return images{filepath.Join(stateDir, ImagesDir)} }
