package rootfs

import (
	"io"

	"os"

	esys "github.com/tetratelabs/wazero/experimental/sys"
	wsys "github.com/tetratelabs/wazero/sys"
)

// file is an open regular file or directory.
type file struct {
	esys.UnimplementedFile
	h      *os.File
	fs     *FS
	dir    bool
	append bool
	closed bool
	ended  bool // Readdir reached the end
}

func (f *file) info() (wsys.Stat_t, esys.Errno) {
	i, err := f.h.Stat()
	if err != nil {
		return wsys.Stat_t{}, errno(err)
	}
	return wsys.NewStat_t(i), 0
}

func (f *file) Dev() (uint64, esys.Errno) {
	st, e := f.info()
	return st.Dev, e
}

func (f *file) Ino() (wsys.Inode, esys.Errno) {
	st, e := f.info()
	return st.Ino, e
}

func (f *file) IsDir() (bool, esys.Errno) { return f.dir, 0 }

func (f *file) IsAppend() bool { return f.append }

// SetAppend changes where writes go. The descriptor's own flag stays; writes
// of an appending file seek first.
func (f *file) SetAppend(enable bool) esys.Errno {
	f.append = enable
	return 0
}

func (f *file) Stat() (wsys.Stat_t, esys.Errno) { return f.info() }

func (f *file) Read(b []byte) (int, esys.Errno) {
	if f.dir {
		return 0, esys.EISDIR
	}
	n, err := f.h.Read(b)
	return f.didRead(n, err)
}

func (f *file) Pread(b []byte, off int64) (int, esys.Errno) {
	if f.dir {
		return 0, esys.EISDIR
	}
	if off < 0 {
		return 0, esys.EINVAL
	}
	n, err := f.h.ReadAt(b, off)
	return f.didRead(n, err)
}

func (f *file) didRead(n int, err error) (int, esys.Errno) {
	f.fs.limits.Read.Add(uint64(max(0, n)))
	if err == io.EOF || n > 0 {
		err = nil
	}
	return max(0, n), errno(err)
}

func (f *file) Seek(off int64, whence int) (int64, esys.Errno) {
	if whence < io.SeekStart || whence > io.SeekEnd {
		return 0, esys.EINVAL
	}
	if f.dir {
		if off != 0 || whence != io.SeekStart {
			return 0, esys.EINVAL
		}
		f.ended = false
	}
	n, err := f.h.Seek(off, whence)
	return n, errno(err)
}

// maxDirents bounds what one call takes of a directory, however large it is.
const maxDirents = 1024

func (f *file) Readdir(n int) ([]esys.Dirent, esys.Errno) {
	if !f.dir {
		return nil, esys.ENOTDIR
	}
	var out []esys.Dirent
	for !f.ended && (n <= 0 || len(out) < n) {
		want := maxDirents
		if n > 0 {
			want = min(want, n-len(out))
		}
		entries, err := f.h.ReadDir(want)
		for _, e := range entries {
			d := esys.Dirent{Name: e.Name(), Type: e.Type()}
			if info, err := e.Info(); err == nil {
				d.Ino = wsys.NewStat_t(info).Ino
			}
			out = append(out, d)
		}
		if err == io.EOF || len(entries) == 0 {
			f.ended = true
		} else if err != nil {
			return out, errno(err)
		}
	}
	return out, 0
}

func (f *file) Write(b []byte) (int, esys.Errno) {
	if f.append {
		if _, err := f.h.Seek(0, io.SeekEnd); err != nil {
			return 0, errno(err)
		}
	}
	return f.write(b, func() (int, error) { return f.h.Write(b) })
}

func (f *file) Pwrite(b []byte, off int64) (int, esys.Errno) {
	if off < 0 {
		return 0, esys.EINVAL
	}
	return f.write(b, func() (int, error) { return f.h.WriteAt(b, off) })
}

func (f *file) write(b []byte, do func() (int, error)) (int, esys.Errno) {
	if f.fs.readOnly {
		return 0, esys.EBADF
	}
	if !f.fs.limits.take(len(b)) {
		return 0, errnoLimit
	}
	n, err := do()
	return max(0, n), errno(err)
}

// Truncate sets the size. What it adds counts as written.
func (f *file) Truncate(size int64) esys.Errno {
	if f.fs.readOnly {
		return esys.EBADF
	}
	if size < 0 {
		return esys.EINVAL
	}
	info, err := f.h.Stat()
	if err != nil {
		return errno(err)
	}
	if grow := size - info.Size(); grow > 0 && !f.fs.limits.take(int(min(grow, 1<<62))) {
		return errnoLimit
	}
	return errno(f.h.Truncate(size))
}

func (f *file) Sync() esys.Errno { return errno(f.h.Sync()) }

func (f *file) Datasync() esys.Errno { return errno(f.h.Sync()) }

func (f *file) Utimens(atim, mtim int64) esys.Errno {
	if f.fs.readOnly {
		return esys.EROFS
	}
	return utimens(f.h, atim, mtim)
}

// IsNonblock reports false: regular files always are ready.
func (f *file) IsNonblock() bool { return false }

func (f *file) SetNonblock(bool) esys.Errno { return 0 }

func (f *file) Close() esys.Errno {
	if f.closed {
		return 0
	}
	f.closed = true
	f.fs.limits.open.Add(-1)
	return errno(f.h.Close())
}
