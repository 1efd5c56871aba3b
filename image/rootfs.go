package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// RootFS is an image's root filesystem as unpacked layers, and a lease on them.
type RootFS struct {
	// Layers are directories, base first: for overlayfs' lowerdir, which wants
	// the uppermost first, turn them around. None is there twice. They must not
	// be changed.
	//
	// Whiteouts are in overlayfs' form: character devices 0/0 (or empty files with
	// user.overlay.whiteout, where the host does not let those be made), and
	// opaque directories with user.overlay.opaque, and with
	// trusted.overlay.opaque if a privileged user unpacked them. A mount inside a
	// user namespace needs the option userxattr.
	Layers []string
	// OwnersMapped says that every file belongs to the user that unpacked it,
	// because that was not root. Else files have the owners that the image says.
	OwnersMapped bool

	lease *lease
}

// Lock is an open file with the lease's lock. While anybody has it open the lease
// holds, also when this process has ended.
func (r *RootFS) Lock() *os.File {
	r.lease.mu.Lock()
	defer r.lease.mu.Unlock()
	if r.lease.lock == nil {
		return nil
	}
	return r.lease.lock.f
}

// Release gives up the lease. It is idempotent. The process's end does the same.
func (r *RootFS) Release() { r.lease.release() }

// RootFS returns the unpacked layers of an image, and keeps them from being
// removed until Release. What is not unpacked is unpacked now, so ctx bounds the
// call; it does not bound the lease.
func (s *Store) RootFS(ctx context.Context, img Image) (*RootFS, error) {
	r, err := s.rootFS(ctx, img)
	if err != nil {
		return nil, &isolation.Error{Op: "root filesystem of image", ID: img.Digest, Err: err}
	}
	return r, nil
}

func (s *Store) rootFS(ctx context.Context, img Image) (_ *RootFS, err error) {
	l, err := s.newLease(ctx, content{Blobs: img.blobs, Layers: img.Layers, Stacks: []string{stackKey(img.Layers)}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.release()
		}
	}()
	// The lease came after the look: an image removed between the two is gone.
	if img, err = s.Get(img.Digest); err != nil {
		return nil, err
	}
	if len(img.Layers) == 0 {
		return nil, fmt.Errorf("the image has no layers: %w", isolation.ErrFailedPrecondition)
	}
	r := &RootFS{lease: l}
	infos := make([]layerInfo, len(img.Layers))
	for i, id := range img.Layers {
		// blobs: the manifest, the config, the layers
		if infos[i], err = s.layer(ctx, img.blobs[2+i], id, s.limits.ImageBytes, newEvents(nil)); err != nil {
			return nil, err
		}
	}
	ids := img.Layers
	for i, info := range slices.Backward(infos) {
		if info.OpaqueRoot {
			ids, infos = ids[i:], infos[i:]
			break
		}
	}
	var top []layerInfo
	for i, id := range ids {
		// overlayfs refuses a layer twice; all of it is in its uppermost place.
		if slices.Contains(ids[i+1:], id) {
			continue
		}
		r.Layers = append(r.Layers, filepath.Join(s.layerPath(id), layerRoot))
		r.OwnersMapped = r.OwnersMapped || infos[i].OwnersMapped
		top = append(top, infos[i])
	}
	fix, err := s.correction(ctx, stackKey(img.Layers), r.Layers, top)
	if err != nil {
		return nil, err
	}
	if fix != "" {
		r.Layers = append(r.Layers, fix)
	}
	return r, nil
}

// stackKey names the correction of a stack of layers.
func stackKey(ids []DiffID) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(string(id))
	}
	h := sha256.Sum256([]byte(b.String()))
	return "stack-" + hex.EncodeToString(h[:])
}
