package image

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// The directories of a store.
const (
	dirBlobs  = "blobs/sha256" // complete blobs, by digest
	dirIngest = "ingest"       // unfinished downloads, by digest, kept to resume them
	dirLayers = "layers"       // unpacked layers, by diff id: fs/ and layer.json
	dirLeases = "leases"       // what running processes use
	dirLocks  = "locks"        // one for each blob or layer that is being made
	dirTemp   = "tmp"          // one directory for each open store
	fileIndex = "index.json"   // images and names
	fileLock0 = "lock"         // held while the index or a lease changes, and while garbage is chosen
)

// Store is a directory of images. It is safe for concurrent use, by several
// processes too.
type Store struct {
	dir       string
	limits    Limits
	downloads int
	backoff   time.Duration // before the first of several attempts in a row
	temp      string        // this store's own temporary directory
	tempLock  *fileLock     // says that this process lives

	closing sync.Once
}

// Open opens the store in a directory, makes it if it is not there, and removes
// what processes that were killed left unfinished, other than downloads that can
// be resumed.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Store{dir: filepath.Clean(c.Dir), limits: c.Limits.withDefaults(), downloads: cmp.Or(c.Downloads, 4), backoff: 200 * time.Millisecond}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := private(s.dir); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, d := range []string{dirBlobs, dirIngest, dirLayers, dirLeases, dirLocks, dirTemp} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	unlock, err := s.lock(context.Background())
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s.temp = s.path(dirTemp, rand.Text())
	s.tempLock, err = tryLock(s.temp + ".lock")
	if err == nil {
		err = os.Mkdir(s.temp, 0o700)
	}
	dead := s.deadTemps()
	unlock()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, d := range dead {
		d.remove()
	}
	return s, nil
}

// Close removes the temporary files of this Store. It must not be in use.
// Leases that were not released stay until the process ends.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		err = removeTree(s.temp)
		s.tempLock.remove()
	})
	return err
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(s.dir, filepath.Join(parts...))
}

// lock takes the store's own lock, which is never held while anything slow is
// done.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	l, err := waitLock(ctx, s.path(fileLock0))
	if err != nil {
		return nil, fmt.Errorf("lock the image store: %w", err)
	}
	return l.unlock, nil
}

// TempDir makes an empty directory beside the layers. Close removes it, and so
// does the next Open after this process was killed.
func (s *Store) TempDir() (string, error) { return s.mkTemp("given-") }

// mkTemp makes a directory for something unfinished.
func (s *Store) mkTemp(prefix string) (string, error) { return os.MkdirTemp(s.temp, prefix) }

// writeFile writes a file whole or not at all.
func (s *Store) writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(s.temp, "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if path == s.path(fileIndex) {
		failpoint.Hit(failpoint.ImageIndex)
	}
	return errors.Join(err, finish(f, path))
}

// finish makes a file durable and gives it its name. The file is closed.
func finish(f *os.File, path string) error {
	err := f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// temp is a temporary directory of a process that is gone.
type deadTemp struct {
	dir  string
	lock *fileLock
}

func (d deadTemp) remove() {
	if removeTree(d.dir) == nil {
		d.lock.remove()
	} else {
		d.lock.unlock()
	}
}

// deadTemps returns, locked, what dead processes left. The caller holds the
// store's lock: a process makes its lock's file and locks it under that.
func (s *Store) deadTemps() (list []deadTemp) {
	locks, _ := filepath.Glob(s.path(dirTemp, "*.lock"))
	for _, path := range locks {
		if path == s.temp+".lock" {
			continue
		}
		if l, err := tryLock(path); err == nil {
			list = append(list, deadTemp{strings.TrimSuffix(path, ".lock"), l})
		}
	}
	return list
}

// damaged says that the store lacks something that its index has.
func damaged(what string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the image store lacks %s; pull or import the image again: %w", what, isolation.ErrFailedPrecondition)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// refuse makes an error of class InvalidArgument.
func refuse(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, isolation.ErrInvalidArgument)...)
}
