package image

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

func flock(f *os.File) error {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return errLocked
	}
	return err
}

// private: access lists come from the parent directory.
func private(string) error { return nil }

// syncDir: directories cannot be synced.
func syncDir(string) error { return nil }
