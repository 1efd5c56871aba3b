// Package wholefile writes files whole or not at all.
package wholefile

import (
	"errors"
	"io/fs"
	"os"
)

// Ending follows a file's name in that of what is written before it takes its place: what
// somebody who was killed has left.
const Ending = ".tmp"

// Write puts a file with the mode in the place of what is there, whole, and so that it is
// there after a crash of the host. One file is not to be written by two at once.
func Write(path string, b []byte, mode fs.FileMode) error {
	tmp := path + Ending
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // it failed already; the next removes it
	}
	return err
}
