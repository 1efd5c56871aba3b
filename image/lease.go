package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// content is what a lease keeps.
type content struct {
	PID    int      `json:"pid"` // for people; whether it lives is told by the file's lock
	Blobs  []string `json:"blobs"`
	Layers []DiffID `json:"layers"`
	// Stacks are keys of corrections, see RootFS.
	Stacks []string `json:"stacks,omitempty"`
}

// lease keeps blobs and layers from being removed, for as long as its process
// lives and until it is released.
type lease struct {
	s *Store

	mu   sync.Mutex
	lock *fileLock // guarded by mu; nil once released
	c    content   // guarded by mu
}

// newLease makes a lease. What it names need not be there yet: a pull leases
// what it is about to look for, so that nothing vanishes between the look and
// the use.
func (s *Store) newLease(ctx context.Context, c content) (*lease, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	fl, err := tryLock(s.path(dirLeases, rand.Text()+".json"))
	if err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	c.PID = os.Getpid()
	l := &lease{s: s, lock: fl, c: c}
	if err := l.writeLocked(); err != nil {
		fl.remove()
		return nil, err
	}
	return l, nil
}

// add leases more.
func (l *lease) add(ctx context.Context, c content) error {
	unlock, err := l.s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.c.Blobs = append(l.c.Blobs, c.Blobs...)
	l.c.Layers = append(l.c.Layers, c.Layers...)
	l.c.Stacks = append(l.c.Stacks, c.Stacks...)
	return l.writeLocked()
}

// writeLocked writes in place, because the lock is the file's. The caller has
// the store's lock, and so is not read meanwhile.
func (l *lease) writeLocked() error {
	b, err := json.Marshal(l.c)
	if err != nil {
		return err
	}
	if err := l.lock.f.Truncate(0); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if _, err := l.lock.f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	return nil
}

// release is idempotent.
func (l *lease) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock != nil {
		l.lock.remove()
		l.lock = nil
	}
}

// leased returns what living processes use, and removes the leases of dead ones.
// The caller holds the store's lock.
func (s *Store) leased() (all content, err error) {
	files, err := filepath.Glob(s.path(dirLeases, "*.json"))
	if err != nil {
		return all, err
	}
	for _, path := range files {
		l, err := tryLock(path)
		if err == nil {
			l.remove()
			continue
		} else if !errors.Is(err, errLocked) {
			return all, err
		}
		c, err := readLease(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // released just now
		} else if err != nil {
			return all, fmt.Errorf("lease %s: %w", filepath.Base(path), err)
		}
		all.Blobs = append(all.Blobs, c.Blobs...)
		all.Layers = append(all.Layers, c.Layers...)
		all.Stacks = append(all.Stacks, c.Stacks...)
	}
	slices.Sort(all.Blobs)
	return all, nil
}

func readLease(path string) (c content, err error) {
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}
