// Package rootfs gives WebAssembly modules a directory of the host, and no way
// out of it. wazero's own directory mounts follow symbolic links wherever they
// lead; here every name is resolved by os.Root, beneath one directory.
package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	esys "github.com/tetratelabs/wazero/experimental/sys"
	wsys "github.com/tetratelabs/wazero/sys"
)

// Limits bound what one process does with its mounts. They are shared by all
// mounts of a process. Zero bounds do not bound.
type Limits struct {
	WriteBytes uint64 // that may be written, in all
	OpenFiles  uint64 // open at once

	Written, Read      atomic.Uint64 // bytes so far
	open               atomic.Int64
	DiskHits, FileHits atomic.Uint64 // refusals
}

// Begin sets the bounds and clears the counts.
func (l *Limits) Begin(writeBytes, openFiles uint64) {
	l.WriteBytes, l.OpenFiles = writeBytes, openFiles
	for _, c := range []*atomic.Uint64{&l.Written, &l.Read, &l.DiskHits, &l.FileHits} {
		c.Store(0)
	}
}

// take counts n bytes that are about to be written.
func (l *Limits) take(n int) bool {
	if w := l.Written.Add(uint64(n)); l.WriteBytes > 0 && w > l.WriteBytes {
		l.Written.Add(-uint64(n))
		l.DiskHits.Add(1)
		return false
	}
	return true
}

// FS is one mounted directory, for wazero's WithSysFSMount.
type FS struct {
	esys.UnimplementedFS
	root     *os.Root
	readOnly bool
	limits   *Limits
}

// New mounts a directory. l must not be nil.
func New(root *os.Root, readOnly bool, l *Limits) *FS {
	return &FS{root: root, readOnly: readOnly, limits: l}
}

// name checks a guest's path and returns it for os.Root.
func name(path string) (string, esys.Errno) {
	if strings.IndexByte(path, 0) >= 0 {
		return "", esys.EINVAL
	}
	if strings.HasPrefix(path, "/") {
		return "", esys.EPERM
	}
	if path == "" {
		return ".", 0
	}
	return path, 0
}

// errno turns an error of os.Root into what a module sees. What would leave
// the directory is EPERM.
func errno(err error) esys.Errno {
	if err == nil {
		return 0
	}
	var sys syscall.Errno
	if errors.As(err, &sys) {
		return esys.UnwrapOSError(sys)
	}
	for _, known := range []error{fs.ErrInvalid, fs.ErrExist, fs.ErrNotExist, fs.ErrClosed} {
		if errors.Is(err, known) {
			return esys.UnwrapOSError(known)
		}
	}
	return esys.EPERM
}

// change runs an operation that changes the directory.
func (f *FS) change(path string, op func(name string) error) esys.Errno {
	n, e := name(path)
	if e != 0 {
		return e
	}
	if f.readOnly {
		return esys.EROFS
	}
	return errno(op(n))
}

// OpenFile opens a regular file or a directory; devices, sockets and FIFOs that
// lie in the directory are refused.
func (f *FS) OpenFile(path string, flag esys.Oflag, perm fs.FileMode) (esys.File, esys.Errno) {
	n, e := name(path)
	if e != 0 {
		return nil, e
	}
	flags := hostFlags(flag)
	const changes = os.O_WRONLY | os.O_RDWR | os.O_CREATE | os.O_TRUNC | os.O_APPEND
	if f.readOnly && flags&changes != 0 {
		return nil, esys.EROFS
	}
	if !f.openOne() {
		return nil, errnoLimit
	}
	file, e := f.open(n, flag, flags, perm&0o777)
	if e != 0 {
		f.limits.open.Add(-1)
		return nil, e
	}
	return file, 0
}

// openOne counts a file that is about to be opened.
func (f *FS) openOne() bool {
	l := f.limits
	if n := l.open.Add(1); l.OpenFiles > 0 && uint64(n) > l.OpenFiles {
		l.open.Add(-1)
		l.FileHits.Add(1)
		return false
	}
	return true
}

func (f *FS) open(n string, flag esys.Oflag, flags int, perm fs.FileMode) (*file, esys.Errno) {
	if flag&esys.O_NOFOLLOW != 0 {
		// os.Root resolves links by itself, so the flag does not reach the
		// kernel for the last element.
		if info, err := f.root.Lstat(n); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return nil, esys.ELOOP
		}
	}
	h, err := f.root.OpenFile(n, flags|openNonblock, perm)
	if err != nil {
		return nil, errno(err)
	}
	info, err := h.Stat()
	if err != nil {
		h.Close()
		return nil, errno(err)
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		if flags&(os.O_WRONLY|os.O_RDWR) != 0 {
			h.Close()
			return nil, esys.EISDIR
		}
	case !mode.IsRegular():
		h.Close()
		return nil, esys.EPERM
	case flag&esys.O_DIRECTORY != 0:
		h.Close()
		return nil, esys.ENOTDIR
	}
	return &file{h: h, fs: f, dir: info.IsDir(), append: flags&os.O_APPEND != 0}, 0
}

func hostFlags(flag esys.Oflag) int {
	flags := os.O_RDONLY
	switch {
	case flag&esys.O_RDWR != 0:
		flags = os.O_RDWR
	case flag&esys.O_WRONLY != 0:
		flags = os.O_WRONLY
	}
	for _, m := range []struct {
		from esys.Oflag
		to   int
	}{
		{esys.O_APPEND, os.O_APPEND}, {esys.O_CREAT, os.O_CREATE}, {esys.O_EXCL, os.O_EXCL},
		{esys.O_TRUNC, os.O_TRUNC}, {esys.O_SYNC, os.O_SYNC}, {esys.O_DSYNC, os.O_SYNC},
	} {
		if flag&m.from != 0 {
			flags |= m.to
		}
	}
	return flags
}

// Lstat implements esys.FS.
func (f *FS) Lstat(path string) (wsys.Stat_t, esys.Errno) { return f.stat(path, f.root.Lstat) }

// Stat implements esys.FS.
func (f *FS) Stat(path string) (wsys.Stat_t, esys.Errno) { return f.stat(path, f.root.Stat) }

func (f *FS) stat(path string, get func(string) (fs.FileInfo, error)) (wsys.Stat_t, esys.Errno) {
	n, e := name(path)
	if e != 0 {
		return wsys.Stat_t{}, e
	}
	info, err := get(n)
	if err != nil {
		return wsys.Stat_t{}, errno(err)
	}
	return wsys.NewStat_t(info), 0
}

// Mkdir implements esys.FS.
func (f *FS) Mkdir(path string, perm fs.FileMode) esys.Errno {
	return f.change(path, func(n string) error { return f.root.Mkdir(n, perm&0o777) })
}

// Chmod implements esys.FS. Bits beyond the permissions are dropped: no set-uid
// program is left for the host.
func (f *FS) Chmod(path string, perm fs.FileMode) esys.Errno {
	return f.change(path, func(n string) error { return f.root.Chmod(n, perm&0o777) })
}

// Rename implements esys.FS.
func (f *FS) Rename(from, to string) esys.Errno {
	t, e := name(to)
	if e != 0 {
		return e
	}
	return f.change(from, func(n string) error { return f.root.Rename(n, t) })
}

// Rmdir implements esys.FS.
func (f *FS) Rmdir(path string) esys.Errno { return f.remove(path, true) }

// Unlink implements esys.FS.
func (f *FS) Unlink(path string) esys.Errno { return f.remove(path, false) }

func (f *FS) remove(path string, dir bool) esys.Errno {
	n, e := name(path)
	if e != 0 {
		return e
	}
	info, err := f.root.Lstat(n)
	switch {
	case err != nil:
		return errno(err)
	case dir && !info.IsDir():
		return esys.ENOTDIR
	case !dir && info.IsDir():
		return esys.EISDIR
	}
	return f.change(path, f.root.Remove)
}

// Link implements esys.FS.
func (f *FS) Link(from, to string) esys.Errno {
	t, e := name(to)
	if e != 0 {
		return e
	}
	return f.change(from, func(n string) error { return f.root.Link(n, t) })
}

// Symlink implements esys.FS. A target outside of the directory is refused: the
// module could not follow it, but a program of the host that reads the
// directory later might.
func (f *FS) Symlink(target, link string) esys.Errno {
	if strings.HasPrefix(target, "/") || !filepath.IsLocal(filepath.Join(filepath.Dir(link), target)) {
		return esys.EPERM
	}
	if strings.IndexByte(target, 0) >= 0 {
		return esys.EINVAL
	}
	return f.change(link, func(n string) error { return f.root.Symlink(target, n) })
}

// Readlink implements esys.FS.
func (f *FS) Readlink(path string) (string, esys.Errno) {
	n, e := name(path)
	if e != 0 {
		return "", e
	}
	target, err := f.root.Readlink(n)
	return target, errno(err)
}

// Utimens implements esys.FS. Times are in nanoseconds since the epoch, or
// esys.UTIME_OMIT.
func (f *FS) Utimens(path string, atim, mtim int64) esys.Errno {
	return f.change(path, func(n string) error {
		return f.root.Chtimes(n, timeOf(atim), timeOf(mtim))
	})
}

// timeOf returns the zero time, which os leaves unchanged, for UTIME_OMIT.
func timeOf(ns int64) time.Time {
	if ns == esys.UTIME_OMIT {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// errnoLimit is what a module sees of a limit. The engine's set of errors has
// neither ENOSPC nor EMFILE; what was hit is told in the process's Exit.
const errnoLimit = esys.EIO
