//go:build unix

package base

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestLockRemovesWhatWasLeft(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "tmp-1", "debs")
	kept := filepath.Join(dir, "debs")
	if err := errors.Join(os.MkdirAll(left, 0o700), os.WriteFile(filepath.Join(left, "x.deb"), nil, 0o600), os.Mkdir(kept, 0o700)); err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tmp-1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left is there: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	// Who waits does not touch what who has it writes.
	mine := filepath.Join(dir, "tmp-2")
	if err := os.Mkdir(mine, 0o700); err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	go func() {
		unlock, err := lock(filepath.Join(dir, "lock"))
		if err == nil {
			unlock()
		}
		next <- err
	}()
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
	unlock()
	if err := <-next; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left is there: %v", err)
	}
}
