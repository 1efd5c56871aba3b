// Package disk makes root disks of virtual machines: read-only images of the
// file system erofs, from directories of the host, without root's rights. The
// same files make the same bytes.
package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/axocoatl/isolation"
)

// Limits bound a disk. A field that is zero has the default.
type Limits struct {
	Bytes   int64 // of all files: 16 GiB
	Entries int   // 2,000,000
}

// Writer makes a disk. Its methods are called in any order; a directory that is
// not there is made. It is not safe for concurrent use.
type Writer struct {
	w      *erofs.Writer
	limits Limits
	bytes  int64
	paths  map[string]bool // true: a directory
	buf    []byte
}

// Create begins a disk in an empty file. Unfinished data goes to the directory
// temp.
func Create(f *os.File, temp string, l Limits) *Writer {
	l.Bytes, l.Entries = cmp.Or(l.Bytes, 16<<30), cmp.Or(l.Entries, 2_000_000)
	return &Writer{
		w:      erofs.Create(f, erofs.WithBuildTime(0, 0), erofs.WithTempDir(temp)),
		limits: l, paths: map[string]bool{"/": true}, buf: make([]byte, 256<<10),
	}
}

// Close finishes the disk.
func (w *Writer) Close() error { return w.w.Close() }

// Has reports whether something is at a path.
func (w *Writer) Has(name string) bool {
	_, ok := w.paths[name]
	return ok
}

// claim notes a path, which must not be taken, and makes its directories.
func (w *Writer) claim(name string, dir bool) error {
	if !path.IsAbs(name) || path.Clean(name) != name {
		return fmt.Errorf("path %q in a disk: %w", name, isolation.ErrInvalidArgument)
	}
	if w.Has(name) {
		return fmt.Errorf("path %q in a disk, twice: %w", name, isolation.ErrAlreadyExists)
	}
	parent := path.Dir(name)
	if isDir, ok := w.paths[parent]; !ok {
		if err := w.Dir(parent, 0o755, 0, 0); err != nil {
			return err
		}
	} else if !isDir {
		return fmt.Errorf("path %q in a disk, below what is no directory: %w", name, isolation.ErrInvalidArgument)
	}
	if len(w.paths) >= w.limits.Entries {
		return fmt.Errorf("a disk of more than %d files: %w", w.limits.Entries, isolation.ErrResourceExhausted)
	}
	w.paths[name] = dir
	return nil
}

// Dir makes a directory. One that is there gets the mode and owner.
func (w *Writer) Dir(name string, mode fs.FileMode, uid, gid int) error {
	if !w.paths[name] {
		if err := w.claim(name, true); err != nil {
			return err
		}
		if err := w.w.Mkdir(name, mode.Perm()); err != nil {
			return err
		}
	}
	return w.meta(name, mode, uid, gid, time.Time{})
}

// File makes a file.
func (w *Writer) File(name string, mode fs.FileMode, data []byte) error {
	return w.file(name, mode, 0, 0, time.Time{}, strings.NewReader(string(data)), int64(len(data)))
}

// Link makes a symbolic link.
func (w *Writer) Link(name, target string) error {
	if err := w.claim(name, false); err != nil {
		return err
	}
	return w.w.Symlink(target, name)
}

func (w *Writer) file(name string, mode fs.FileMode, uid, gid int, mtime time.Time, r io.Reader, size int64) error {
	if err := w.claim(name, false); err != nil {
		return err
	}
	if w.bytes += size; w.bytes > w.limits.Bytes {
		return fmt.Errorf("a disk of more than %d bytes: %w", w.limits.Bytes, isolation.ErrResourceExhausted)
	}
	f, err := w.w.Create(name)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(r, size), w.buf)
	if err == nil && n < size {
		err = fmt.Errorf("%s became shorter while it was read: %w", name, isolation.ErrFailedPrecondition)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return w.meta(name, mode, uid, gid, mtime)
}

// meta sets what is the same for files and directories.
func (w *Writer) meta(name string, mode fs.FileMode, uid, gid int, mtime time.Time) error {
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	return errors.Join(w.w.Chmod(name, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)), w.w.Chown(name, uid, gid), w.w.Chtimes(name, mtime, mtime))
}

// Owner says who owns a copied file in the disk.
type Owner func(uid, gid int) (int, int)

// Same keeps owners.
func Same(uid, gid int) (int, int) { return uid, gid }

// Tree copies a directory of the host, with all below it, to a path. Links are
// copied, never followed. Sockets, pipes and devices are left out. Skip, unless
// it is nil, leaves out what it is true of; it gets the path in the disk.
func (w *Writer) Tree(source, target string, owner Owner, skip func(name string, d fs.DirEntry) bool) error {
	root, err := os.OpenRoot(source)
	if err != nil {
		return fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(rel string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := path.Join(target, rel)
		if skip != nil && skip(name, d) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while this was looking
		} else if err != nil {
			return err
		}
		return w.copy(root, rel, name, info, owner)
	})
}

// Copy copies a file, or a directory with all below it, to a path, under the same
// terms as Tree. Links are followed to what is to be copied, and not below.
func (w *Writer) Copy(source, target string, owner Owner) error {
	source, err := filepath.EvalSymlinks(source)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
	}
	if err != nil {
		return err
	}
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return w.Tree(source, target, owner, nil)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is neither a directory nor a regular file: %w", source, isolation.ErrInvalidArgument)
	}
	root, err := os.OpenRoot(filepath.Dir(source))
	if err != nil {
		return err
	}
	defer root.Close()
	return w.copy(root, filepath.Base(source), target, info, owner)
}

// Path copies one file, link or empty directory of the host to the same path.
func (w *Writer) Path(name string, owner Owner) error {
	name = filepath.Clean(name)
	root, err := os.OpenRoot(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Lstat(filepath.Base(name))
	if err != nil {
		return err
	}
	return w.copy(root, filepath.Base(name), name, info, owner)
}

// copy copies what is at rel in root.
func (w *Writer) copy(root *os.Root, rel, name string, info fs.FileInfo, owner Owner) error {
	uid, gid := owner(ids(info))
	switch info.Mode().Type() {
	case fs.ModeDir:
		if err := w.Dir(name, info.Mode(), uid, gid); err != nil {
			return err
		}
		return w.w.Chtimes(name, info.ModTime(), info.ModTime())
	case fs.ModeSymlink:
		target, err := root.Readlink(rel)
		if err != nil {
			return err
		}
		if err := w.Link(name, target); err != nil {
			return err
		}
		return errors.Join(w.w.Chown(name, uid, gid), w.w.Chtimes(name, info.ModTime(), info.ModTime()))
	case 0:
		f, err := root.OpenFile(rel, os.O_RDONLY|nonblock, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		now, err := f.Stat()
		if err != nil {
			return err
		}
		if !now.Mode().IsRegular() {
			return fmt.Errorf("%s changed while it was read: %w", name, isolation.ErrFailedPrecondition)
		}
		return w.file(name, now.Mode(), uid, gid, now.ModTime(), f, now.Size())
	}
	return nil
}

// Paths are those of the disk, sorted.
func (w *Writer) Paths() []string {
	out := make([]string, 0, len(w.paths))
	for p := range w.paths {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}
