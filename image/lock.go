package image

import (
	"context"
	"errors"
	"os"
	"time"
)

// errLocked: another holds it.
var errLocked = errors.New("locked by another process")

// fileLock is a lock of the kernel's on an open file. It ends with the process
// at the latest, however that ends, so that no number of a process has to be
// believed. It holds between two opens of one process, too.
type fileLock struct {
	f    *os.File
	path string
}

// tryLock takes the lock of a path, or returns errLocked. The file is made if it
// is not there.
func tryLock(path string) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, err
		}
		// Its last holder may have removed it between the open and the lock.
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if now, err := os.Lstat(path); err == nil && os.SameFile(mine, now) {
			return &fileLock{f, path}, nil
		}
		f.Close()
	}
}

// waitLock waits until it has the lock, or ctx ends.
func waitLock(ctx context.Context, path string) (*fileLock, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 25*time.Millisecond) {
		l, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

func (l *fileLock) unlock() { l.f.Close() }

// remove deletes the file and gives up the lock.
func (l *fileLock) remove() {
	os.Remove(l.path)
	l.f.Close()
}
