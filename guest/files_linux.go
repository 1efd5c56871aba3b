package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
)

// What a list may have: entries, and bytes of them.
const (
	maxEntries = 1 << 14
	maxListing = 4 << 20
)

// do does one operation and returns the body of its answer.
func (o *fileOp) do(m *wire.FileMessage) (*wire.FileEntry, error) {
	for _, name := range []string{m.Name, m.Target} {
		if name == "" && m.Op != wire.FileRename {
			continue
		}
		if !path.IsAbs(name) || len(name) >= unix.PathMax || strings.IndexByte(name, 0) >= 0 {
			return nil, &classError{classInvalid, fmt.Errorf("%.80q is not an absolute path", name)}
		}
	}
	if m.Name == "" {
		return nil, &classError{classInvalid, errors.New("no name")}
	}
	var u account
	err := o.s.g.inside(func() (err error) {
		u, err = o.s.g.user(m.User)
		return err
	})
	if err != nil {
		return nil, err
	}
	as := func(f func() error) error { return o.s.g.asUser(u, f) }
	e := &wire.FileEntry{}
	switch m.Op {
	case wire.FileStat:
		err = as(func() error { return stat(m.Name, m.NoLink, e) })
	case wire.FileList:
		var b []byte
		if err = as(func() (err error) { b, e.Dropped, err = list(m.Name); return err }); err == nil {
			err = o.send(b)
		}
	case wire.FileRead:
		err = o.read(as, m.Name, e)
	case wire.FileWrite:
		err = o.write(as, m, e)
	case wire.FileMkdir:
		err = as(func() error { return mkdir(m.Name, uint32(m.Mode&0o1777), m.Parents) })
	case wire.FileRename:
		err = as(func() error {
			return withParent(m.Name, func(from int, old string) error {
				return withParent(m.Target, func(to int, name string) error { return unix.Renameat(from, old, to, name) })
			})
		})
	case wire.FileRemove:
		err = as(func() error { return remove(m.Name, m.All) })
	case wire.FileWatch:
		err = o.watch(as, m)
	case wire.FileSpace:
		err = as(func() error { return space(m.Name, e) })
	}
	if err != nil {
		return nil, fileError(m.Name, err)
	}
	return e, nil
}

// fileError gives an error its class.
func fileError(name string, err error) error {
	var c *classError
	if errors.As(err, &c) {
		return err
	}
	class := ""
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		class = classNotFound
	case errors.Is(err, unix.ENOTEMPTY):
		class = classFailed
	case errors.Is(err, fs.ErrExist):
		class = classExists
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		class = classPermission
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		class = classExhausted
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EXDEV),
		errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENXIO):
		class = classInvalid
	}
	return &classError{class, fmt.Errorf("%.200q: %w", name, err)}
}

// open opens a name of the sandbox. It waits for nobody, as on a pipe, and does
// not follow the links of proc, which lead to where no name does.
func open(name string, flags int, mode uint32) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	if flags&unix.O_PATH != 0 {
		flags &^= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	how := unix.OpenHow{Flags: uint64(flags), Mode: uint64(mode), Resolve: unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, name, &how)
		if err == unix.ENOSYS { // of a kernel that is none, as gVisor's
			fd, err = unix.Open(name, flags, mode)
		}
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// withParent calls f with the directory of a name and its last element.
func withParent(name string, f func(dir int, base string) error) error {
	dir, base := path.Split(strings.TrimRight(name, "/"))
	if base == "" || base == "." || base == ".." {
		return unix.EINVAL
	}
	fd, err := open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd, base)
}

func stat(name string, noLink bool, e *wire.FileEntry) error {
	flags := unix.O_PATH
	if noLink {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := open(name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	fill(e, path.Base(name), &st)
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		e.Link = readLink(fd, "")
	}
	return nil
}

// space tells of the file system that a file is on.
func space(name string, e *wire.FileEntry) error {
	fd, err := open(name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	e.Total, e.Free = st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
	return nil
}

func fill(e *wire.FileEntry, name string, st *unix.Stat_t) {
	*e = wire.FileEntry{
		Name: name, Mode: uint64(st.Mode), Size: uint64(max(0, st.Size)), Time: uint64(max(0, st.Mtim.Nano())), UID: uint64(st.Uid), GID: uint64(st.Gid),
	}
}

func readLink(fd int, name string) string {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// list returns the entries of a directory as records, and how many more there
// are than are told.
func list(name string) (b []byte, dropped uint64, err error) {
	fd, err := open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, 0, err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	count := 0
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if count == maxEntries || len(b) > maxListing {
				dropped++
				continue
			}
			var st unix.Stat_t
			if unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // it has gone since
			}
			var e wire.FileEntry
			fill(&e, n, &st)
			if st.Mode&unix.S_IFMT == unix.S_IFLNK {
				e.Link = readLink(fd, n)
			}
			b = wire.AppendRecord(b, e.Append(nil))
			count++
		}
		if err != nil || len(names) == 0 || dropped > 1<<20 {
			return b, dropped, nil
		}
	}
}

// read sends the content of a file.
func (o *fileOp) read(as func(func() error) error, name string, e *wire.FileEntry) error {
	var f *os.File
	err := as(func() error {
		fd, err := open(name, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			err = &classError{classInvalid, fmt.Errorf("%.200q is not a regular file", name)}
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		fill(e, path.Base(name), &st)
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := f.Read(buf)
		if serr := o.send(buf[:n]); serr != nil {
			return serr
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// write puts what comes into a new file, which takes the place of the old one
// when it is whole. A link is replaced, not followed.
func (o *fileOp) write(as func(func() error) error, m *wire.FileMessage, e *wire.FileEntry) error {
	dir, f := -1, (*os.File)(nil)
	var base, temp string
	err := as(func() error {
		return withParent(m.Name, func(fd int, name string) (err error) {
			if dir, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				return err
			}
			var random [8]byte
			if _, err = unix.Getrandom(random[:], 0); err != nil {
				return err
			}
			base, temp = name, ".axo-"+strconv.FormatUint(native.Uint64(random[:]), 36)
			file, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
			if err == nil {
				f = os.NewFile(uintptr(file), temp)
			}
			return err
		})
	})
	if dir >= 0 {
		defer unix.Close(dir)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for err == nil {
		var b []byte
		if b, err = o.receive(); err != nil || b == nil {
			break
		}
		_, err = f.Write(b)
	}
	if err == nil {
		err = unix.Fchmod(fdOf(f), uint32(m.Mode&0o777))
	}
	return as(func() error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(fdOf(f), &st)
		}
		if err == nil {
			err = unix.Renameat(dir, temp, dir, base)
		}
		if err != nil {
			_ = unix.Unlinkat(dir, temp, 0)
			return err
		}
		fill(e, base, &st)
		return nil
	})
}

func mkdir(name string, mode uint32, parents bool) error {
	err := mkdirOne(name, mode)
	if !parents {
		return err
	}
	if up := path.Dir(strings.TrimRight(name, "/")); errors.Is(err, unix.ENOENT) && up != "/" && up != name {
		if err := mkdir(up, 0o755, true); err != nil {
			return err
		}
		err = mkdirOne(name, mode) // and not again: in /proc it is ENOENT whatever is there
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, oerr := open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if oerr != nil {
		return err
	}
	unix.Close(fd)
	return nil
}

func mkdirOne(name string, mode uint32) error {
	return withParent(name, func(dir int, base string) error {
		err := unix.Mkdirat(dir, base, mode)
		if err == nil {
			err = unix.Fchmodat(dir, base, mode, 0) // whatever the mask
		}
		return err
	})
}

func remove(name string, all bool) error {
	err := withParent(name, func(dir int, base string) error {
		err := unix.Unlinkat(dir, base, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			if derr := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR); !errors.Is(derr, unix.ENOTDIR) {
				err = derr
			}
		}
		return err
	})
	if all && errors.Is(err, unix.ENOTEMPTY) {
		return os.RemoveAll(name) // it follows no links either
	}
	return err
}

const (
	// maxWatched bounds the directories of one watch.
	maxWatched = 1 << 10
	watchMask  = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_ATTRIB |
		unix.IN_DELETE_SELF | unix.IN_EXCL_UNLINK
)

// watched is an inotify(7) instance and what it watches.
type watched struct {
	f     *os.File
	all   bool
	names map[int32]string
	full  bool // there are more directories than are watched
}

func (w *watched) add(name string) error {
	if len(w.names) >= maxWatched {
		w.full = true
		return nil
	}
	mask := uint32(watchMask)
	if len(w.names) > 0 {
		mask |= unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW
	}
	wd, err := unix.InotifyAddWatch(fdOf(w.f), name, mask)
	if err != nil {
		return err
	}
	w.names[int32(wd)] = name
	if !w.all {
		return nil
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil //nolint:nilerr // it is no directory, or not to be listed
	}
	for _, e := range entries {
		if e.IsDir() {
			_ = w.add(path.Join(name, e.Name())) // one that may not be watched is not
		}
	}
	return nil
}

// watch tells what happens in a directory, until it is ended.
func (o *fileOp) watch(as func(func() error) error, m *wire.FileMessage) error {
	w := &watched{all: m.All, names: map[int32]string{}}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	w.f = os.NewFile(uintptr(fd), "inotify")
	defer w.f.Close()
	if err := as(func() error { return w.add(path.Clean(m.Name)) }); err != nil {
		return err
	}
	if err := o.s.l.send(wire.File, o.stream, nil, -1); err != nil {
		return err
	}
	o.onEnd(func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return errEnded
		}
		var out []byte
		err = as(func() error {
			out = w.events(buf[:n])
			return nil
		})
		if err == nil {
			err = o.send(out)
		}
		if err != nil {
			return err
		}
	}
}

// events makes records of what inotify says, and watches new directories.
func (w *watched) events(b []byte) (out []byte) {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(native.Uint32(b))
		mask, n := native.Uint32(b[4:]), int(native.Uint32(b[12:]))
		b = b[unix.SizeofInotifyEvent:]
		file := strings.TrimRight(string(b[:min(n, len(b))]), "\x00")
		b = b[min(n, len(b)):]
		dir, known := w.names[wd]
		e := wire.FileEvent{Name: path.Join(dir, file)}
		for bit, event := range map[uint32]uint64{
			unix.IN_CREATE | unix.IN_MOVED_TO: wire.EventCreate, unix.IN_MODIFY | unix.IN_CLOSE_WRITE: wire.EventWrite,
			unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_DELETE_SELF: wire.EventRemove, unix.IN_ATTRIB: wire.EventMeta,
		} {
			if mask&bit != 0 {
				e.Event |= event
			}
		}
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			e = wire.FileEvent{Event: wire.EventOverflow}
		case mask&unix.IN_IGNORED != 0:
			delete(w.names, wd)
			continue
		case !known || e.Event == 0:
			continue
		}
		out = wire.AppendRecord(out, e.Append(nil))
		if w.all && mask&unix.IN_ISDIR != 0 && mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0 {
			_ = w.add(e.Name)
		}
		if w.full {
			w.full = false
			out = wire.AppendRecord(out, (&wire.FileEvent{Event: wire.EventOverflow}).Append(nil))
		}
	}
	return out
}
