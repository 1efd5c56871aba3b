//go:build unix

package base

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// lock waits for its turn, and removes what those before it have left in the lock's
// directory when they were killed; call what it returns.
func lock(name string) (func(), error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(name), "tmp-*"))
	for _, temp := range left {
		err = errors.Join(err, os.RemoveAll(temp))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
