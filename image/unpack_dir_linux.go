package image

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// resolve: as in a chroot, below the layer's root, and not through /proc or
// into another mount.
const resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openat2 tries again when a rename elsewhere disturbed the kernel's check.
func openat2(dir int, name string, how *unix.OpenHow) (int, error) {
	for range 100 {
		fd, err := unix.Openat2(dir, name, how)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSYS):
			return -1, &isolation.UnsupportedError{Feature: "unpacking image layers", Need: "the system call openat2 (Linux 5.6), which this kernel or its filter does not allow"}
		}
		return fd, err
	}
	return -1, unix.EAGAIN
}

// parentDir is an open directory of the layer.
type parentDir struct {
	asked string // as the entries name it
	name  string // as it is without symbolic links
	fd    int    // O_PATH; -1 for none
}

func (p *parentDir) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
}

// openParent opens the directory of an entry, and makes it if no entry did. It
// is valid until the next call. Only an entry that replaces another can change
// what a name leads to, and remove forgets the parent then.
func (u *unpacker) openParent(dir string) (*parentDir, error) {
	if u.parent.fd >= 0 && u.parent.asked == dir {
		return &u.parent, nil
	}
	u.parent.close()
	p, err := u.resolveDir(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		p, err = u.makeDirs(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("directory %.200q: %w", dir, err)
	}
	u.parent = p
	return &u.parent, nil
}

// resolveDir opens a directory. Its name without links is told by the kernel if
// there were links on the way.
func (u *unpacker) resolveDir(dir string) (parentDir, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_SYMLINKS}
	fd, err := openat2(u.root, dir, &how)
	if err == nil {
		return parentDir{dir, dir, fd}, nil
	} else if !errors.Is(err, unix.ELOOP) {
		return parentDir{}, err
	}
	how.Resolve = resolve
	if fd, err = openat2(u.root, dir, &how); err != nil {
		return parentDir{}, err
	}
	name, err := u.nameOf(fd)
	if err != nil {
		unix.Close(fd)
		return parentDir{}, err
	}
	return parentDir{dir, name, fd}, nil
}

// nameOf returns the name of an open directory below the root.
func (u *unpacker) nameOf(fd int) (string, error) {
	root, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", u.root))
	if err != nil {
		return "", err
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	if name == root {
		return ".", nil
	}
	rel, ok := strings.CutPrefix(name, root+"/")
	if !ok {
		return "", refuse("%q is outside of the layer", name)
	}
	return rel, nil
}

// makeDirs makes the directories of a name that are missing. They get no entry
// of their own, so they get mode 0755 and root as their owner, and are listed.
func (u *unpacker) makeDirs(dir string) (parentDir, error) {
	p, err := u.resolveDir(".")
	if err != nil {
		return p, err
	}
	done := ""
	for part := range strings.SplitSeq(dir, "/") {
		done = path.Join(done, part)
		next, err := u.resolveDir(done)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			kind, kerr := kindAt(p.fd, part)
			switch {
			case errors.Is(kerr, unix.ENOENT) || kind == kindWhiteout:
				m := dirMeta{name: path.Join(p.name, part), mode: 0o755}
				if u.info.Entries++; u.info.Entries > u.limits.LayerEntries {
					kerr = u.tooMany()
				} else if len(m.name) > u.limits.PathBytes || depth(m.name) > u.limits.Depth {
					kerr = refuse("it is too long or too deep behind symbolic links")
				} else if kerr = u.mkdir(&p, part, m); kerr == nil {
					u.info.Implied = append(u.info.Implied, m.name)
				}
			case kerr == nil:
				kerr = refuse("%.200q is a file, or a symbolic link to nothing", done)
			}
			if kerr != nil {
				p.close()
				return p, kerr
			}
			next, err = u.resolveDir(done)
		}
		p.close()
		if err != nil {
			return p, err
		}
		p = next
	}
	p.asked = dir
	return p, nil
}

// kind is what stands at a name.
type kind int

const (
	kindOther kind = iota
	kindDir
	kindWhiteout
)

func kindAt(dir int, base string) (kind, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return kindOther, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return kindDir, nil
	case unix.S_IFCHR: // only whiteouts are made of devices
		return kindWhiteout, nil
	case unix.S_IFREG:
		if st.Size == 0 && isXattrWhiteout(dir, base) {
			return kindWhiteout, nil
		}
	}
	return kindOther, nil
}

func sameAt(dir1 int, name1 string, dir2 int, name2 string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstatat(dir1, name1, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	err := unix.Fstatat(dir2, name2, &b, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && a.Ino == b.Ino && a.Dev == b.Dev, err
}

// later remembers what a directory gets at the end. Its last entry counts.
func (u *unpacker) later(m dirMeta) {
	if at, ok := u.dirAt[m.name]; ok {
		u.dirs[at] = m
		return
	}
	u.dirAt[m.name] = len(u.dirs)
	u.dirs = append(u.dirs, m)
}

// finish gives the directories their owners, modes and times, the deepest
// first: a mode may take away the way to what is below.
func (u *unpacker) finish() error {
	u.parent.close()
	slices.SortFunc(u.dirs, func(a, b dirMeta) int {
		return cmp.Or(cmp.Compare(depth(b.name), depth(a.name)), cmp.Compare(b.name, a.name))
	})
	for _, m := range u.dirs {
		if err := u.finishDir(m); err != nil {
			return fmt.Errorf("directory %.200q: %w", m.name, err)
		}
	}
	return nil
}

// depth counts the directories of a name; the root has none.
func depth(name string) int {
	if name == "." {
		return 0
	}
	return strings.Count(name, "/") + 1
}

func (u *unpacker) finishDir(m dirMeta) error {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_SYMLINKS}
	fd, err := openat2(u.root, m.name, &how)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil // a later entry has replaced it
	case err != nil:
		return os.NewSyscallError("openat2", err)
	}
	defer unix.Close(fd)
	if u.owners {
		if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
			return chownError(m, err)
		}
	}
	if err := u.setXattrs(fd, m.xattrs, true); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if m.name == "." {
		return nil // its time is nobody's
	}
	// The descriptor's own name: the directory may not be searchable any more.
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, "", []unix.Timespec{m.mtime, m.mtime}, unix.AT_EMPTY_PATH))
}
