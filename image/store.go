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
	temp      string        // this store's own temporary directory; see work

	mu       sync.Mutex
	tempLock *fileLock // guarded by mu; says that this process lives; nil: temp is not there
}

// Open opens the store in a directory, and makes it if it is not there.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Store{dir: filepath.Clean(c.Dir), limits: c.Limits.withDefaults(), downloads: cmp.Or(c.Downloads, 4), backoff: 200 * time.Millisecond}
	s.temp = s.path(dirTemp, rand.Text())
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
	return s, nil
}

// work returns this store's own temporary directory, which is made when it is
// first wanted: who only reads needs none, and takes no lock. What processes
// that were killed left unfinished is removed then, other than downloads that
// can be resumed. The caller does not have the store's lock.
func (s *Store) work() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tempLock != nil {
		return s.temp, nil
	}
	unlock, err := s.lock(context.Background())
	if err != nil {
		return "", err
	}
	l, err := tryLock(s.temp + ".lock")
	if err == nil {
		if err = os.Mkdir(s.temp, 0o700); err != nil {
			l.remove()
		}
	}
	dead := s.deadTemps()
	unlock()
	for _, d := range dead {
		d.remove()
	}
	if err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	s.tempLock = l
	return s.temp, nil
}

// Close removes the temporary files of this Store. It must not be in use.
// Leases that were not released stay until the process ends.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tempLock == nil {
		return nil
	}
	err := removeTree(s.temp)
	s.tempLock.remove()
	s.tempLock = nil
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
// does who next writes to the store after this process was killed.
func (s *Store) TempDir() (string, error) { return s.mkTemp("given-") }

// mkTemp makes a directory for something unfinished.
func (s *Store) mkTemp(prefix string) (string, error) {
	dir, err := s.work()
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(dir, prefix)
}

// createTemp makes a file for something unfinished.
func (s *Store) createTemp(prefix string) (*os.File, error) {
	dir, err := s.work()
	if err != nil {
		return nil, err
	}
	return os.CreateTemp(dir, prefix)
}

// writeFile writes a file whole or not at all.
func (s *Store) writeFile(path string, data []byte) error {
	f, err := s.createTemp("file-")
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
