package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

const (
	uploadsDir = "uploads"
	tempUpload = "tmp-" // begins the names of what came in part

	atOnce     = 4 // uploads of a tenant
	maxUploads = 4 // times the bytes of one upload a tenant's may have together
)

// uploads are the files that tenants have sent for the Copy steps of their builds, by the
// hashes that they give them.
type uploads struct {
	uploadDir string
	most      int64 // bytes of one

	mu     sync.Mutex
	places map[string]chan struct{} // for a tenant's at once; guarded by mu
}

func newUploads(dir string, most int64) *uploads {
	return &uploads{uploadDir: dir, most: most, places: map[string]chan struct{}{}}
}

// name is the file of what a tenant has uploaded. The hash was checked.
func (u *uploads) name(tenant, hash string) string {
	sum := sha256.Sum256([]byte(tenant))
	return filepath.Join(u.uploadDir, hex.EncodeToString(sum[:10]), hash)
}

// Uploaded reports whether a tenant has uploaded files of a hash.
func (u *uploads) Uploaded(tenant, hash string) bool {
	if !filesHash().MatchString(hash) {
		return false
	}
	_, err := os.Stat(u.name(tenant, hash))
	return err == nil
}

// openUpload reads what was uploaded.
func (u *uploads) openUpload(tenant, hash string) (io.ReadCloser, error) {
	f, err := os.Open(u.name(tenant, hash))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s are not here any more; send them again: %w", hash, isolation.ErrFailedPrecondition)
	}
	return f, err
}

// Upload keeps files for a Copy: a tar, which may be compressed by gzip. What is wrong with
// it is said now. Of a tenant's at once some wait for others.
func (u *uploads) Upload(ctx context.Context, tenant, hash string, r io.Reader) (err error) {
	if !filesHash().MatchString(hash) {
		return invalid("files %.80q: want 64 hexadecimal digits", hash)
	}
	u.mu.Lock()
	places := u.places[tenant]
	if places == nil {
		places = make(chan struct{}, atOnce)
		u.places[tenant] = places
	}
	u.mu.Unlock()
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	name := u.name(tenant, hash)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), tempUpload)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	defer f.Close()
	if _, err := io.Copy(f, &bound{r: r, left: u.most, of: u.most}); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := CheckArchive(f, u.most); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return u.prune(filepath.Dir(name), hash)
}

// prune removes the oldest of a tenant's uploads where they are too many together.
func (u *uploads) prune(dir, keep string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type file struct {
		name string
		size int64
		at   time.Time
	}
	var all []file
	total := int64(0)
	for _, e := range list {
		if i, err := e.Info(); err == nil && filesHash().MatchString(e.Name()) {
			all, total = append(all, file{e.Name(), i.Size(), i.ModTime()}), total+i.Size()
		}
	}
	slices.SortFunc(all, func(a, b file) int { return a.at.Compare(b.at) })
	for _, f := range all {
		if total <= maxUploads*u.most {
			break
		}
		if f.name == keep {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.name)); err != nil {
			return err
		}
		total -= f.size
	}
	return nil
}
