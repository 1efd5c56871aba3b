package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/axocoatl/isolation/internal/failpoint"
)

// Freed says what [Store.GC] removed.
type Freed struct {
	Blobs  int `json:"blobs"`
	Layers int `json:"layers"`
	// Partial counts unfinished downloads.
	Partial int `json:"partial"`
	// Temp counts temporary directories of processes that are gone.
	Temp int `json:"temp"`
	// Bytes is the size of the blobs and of the files of the layers, together.
	Bytes int64 `json:"bytes"`
}

// GCOptions are options of [Store.GC].
type GCOptions struct {
	// KeepPartial keeps unfinished downloads, so that they can be resumed.
	KeepPartial bool
}

// GC removes the blobs and layers that no image has and no lease, and no pull
// or import that runs now, needs. Leases of dead processes do not count.
// Canceling ctx ends it early; what was done by then is done.
func (s *Store) GC(ctx context.Context, o GCOptions) (Freed, error) {
	var freed Freed
	trash, err := s.mkTemp("gc-")
	if err != nil {
		return freed, fmt.Errorf("image gc: %w", err)
	}
	dead, err := s.condemn(ctx, o, trash, &freed)
	failpoint.Hit(failpoint.ImageTrash)
	// The deleting is done without the lock.
	err = errors.Join(err, removeTree(trash))
	for _, d := range dead {
		d.remove()
		freed.Temp++
	}
	if err != nil {
		return freed, fmt.Errorf("image gc: %w", err)
	}
	return freed, nil
}

// condemn moves what is not needed to the trash.
func (s *Store) condemn(ctx context.Context, o GCOptions, trash string, freed *Freed) ([]deadTemp, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	keep, err := s.leased()
	if err != nil {
		return nil, err
	}
	blobs, layers := map[string]bool{}, map[string]bool{}
	for _, d := range keep.Blobs {
		blobs[strings.TrimPrefix(d, "sha256:")] = true
	}
	for _, d := range keep.Layers {
		layers[strings.TrimPrefix(string(d), "sha256:")] = true
	}
	for _, k := range keep.Stacks {
		layers[k] = true
	}
	for d, r := range x.Images {
		for _, b := range append([]string{d}, r.Blobs...) {
			blobs[strings.TrimPrefix(b, "sha256:")] = true
		}
		for _, l := range r.Layers {
			layers[strings.TrimPrefix(string(l), "sha256:")] = true
		}
		layers[stackKey(r.Layers)] = true
	}
	// What must be there to be counted is counted before it is moved.
	move := func(dir, name string) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := os.Rename(s.path(dir, name), filepath.Join(trash, strings.ReplaceAll(dir, "/", "-")+"-"+name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, c := range []struct {
		dir  string
		keep map[string]bool
		n    *int
	}{{dirBlobs, blobs, &freed.Blobs}, {dirLayers, layers, &freed.Layers}} {
		list, err := os.ReadDir(s.path(c.dir))
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if c.keep[e.Name()] {
				continue
			}
			var size int64
			if c.dir == dirLayers {
				info, _ := readLayerInfo(s.path(c.dir, e.Name()))
				size = info.Bytes
			} else if st, err := e.Info(); err == nil {
				size = st.Size()
			}
			if err := move(c.dir, e.Name()); err != nil {
				return nil, err
			}
			*c.n++
			freed.Bytes += size
		}
	}
	if !o.KeepPartial {
		if err := s.condemnPartial(move, freed); err != nil {
			return nil, err
		}
	}
	s.removeIdleLocks()
	return s.deadTemps(), nil
}

// removeIdleLocks removes the files of locks that killed processes left. Who
// waits for one notices.
func (s *Store) removeIdleLocks() {
	list, _ := os.ReadDir(s.path(dirLocks))
	for _, e := range list {
		if l, err := tryLock(s.path(dirLocks, e.Name())); err == nil {
			l.remove()
		}
	}
}

// condemnPartial moves the unfinished downloads that nobody works on.
func (s *Store) condemnPartial(move func(dir, name string) error, freed *Freed) error {
	list, err := os.ReadDir(s.path(dirIngest))
	if err != nil {
		return err
	}
	for _, e := range list {
		l, err := tryLock(s.path(dirLocks, "blob-"+e.Name()))
		if errors.Is(err, errLocked) {
			continue
		} else if err != nil {
			return err
		}
		var size int64
		if st, err := e.Info(); err == nil {
			size = st.Size()
		}
		err = move(dirIngest, e.Name())
		l.remove()
		if err != nil {
			return err
		}
		freed.Partial++
		freed.Bytes += size
	}
	return nil
}
