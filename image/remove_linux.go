package image

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// syncTree makes a tree durable before it gets its name. One syncfs is much
// cheaper than an fsync of each of its files.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// removeTree removes a directory and all in it, whatever its modes and however
// deep it is: every directory is moved up to a flat one first, so that neither
// the stack nor the descriptors grow with the depth. It follows no link.
func removeTree(dir string) error {
	err := os.Remove(dir)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// The directory itself is the flat one, so that whoever sweeps it finds all.
	r := remover{flat: int(f.Fd()), prefix: rand.Text()}
	if err := r.each(f, r.top); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return os.Remove(dir)
}

type remover struct {
	flat   int // the directory that all are moved to
	prefix string
	n      int
}

// each calls a function that removes for all names of a directory, until there
// are none.
func (r *remover) each(d *os.File, f func(name string) error) error {
	for {
		// What was read is gone, so the next names are read from the start.
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := d.Readdirnames(1024)
		if len(names) == 0 {
			if err == io.EOF {
				return nil
			}
			return err
		}
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
	}
}

// top removes an entry of the flat directory.
func (r *remover) top(name string) error {
	if gone, err := remove(r.flat, name); gone || err != nil {
		return err
	}
	fd, err := unix.Openat(r.flat, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	err = r.each(d, func(entry string) error {
		if gone, err := remove(fd, entry); gone || err != nil {
			return err
		}
		r.n++
		return os.NewSyscallError("renameat", unix.Renameat(fd, entry, r.flat, fmt.Sprint(r.prefix, r.n)))
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("rmdir", unix.Unlinkat(r.flat, name, unix.AT_REMOVEDIR))
}

// remove removes a file or an empty directory. A directory that is not empty is
// made one that can be opened, moved and emptied.
func remove(dir int, name string) (gone bool, err error) {
	err = unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return false, os.NewSyscallError("unlinkat", err)
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err == nil {
		return true, nil
	} else if !errors.Is(err, unix.ENOTEMPTY) {
		return false, os.NewSyscallError("rmdir", err)
	}
	return false, os.NewSyscallError("fchmodat", unix.Fchmodat(dir, name, 0o700, 0))
}
