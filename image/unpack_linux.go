package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// unpacker writes the entries of one tar below one directory. No path is
// resolved by the program: the kernel resolves the name of an entry's parent as
// in a chroot (openat2 with RESOLVE_IN_ROOT), and everything else is done
// relative to that descriptor, by a name without a slash, without following it.
type unpacker struct {
	root   int // descriptor of the layer's directory
	dir    string
	limits Limits
	info   layerInfo
	// owners: files get the owners that the image says.
	owners bool
	// noMknod: whiteouts are written as extended attributes.
	noMknod bool

	parent parentDir // of the last entry; most have the same as the one before
	dirs   []dirMeta // what is set at the end, because entries still come
	dirAt  map[string]int
	buf    []byte
}

// dirMeta is what a directory gets when all is in it.
type dirMeta struct {
	name     string
	mode     uint32
	uid, gid int
	mtime    unix.Timespec
	xattrs   []xattr
}

// unpack writes a tar's entries to a directory that is empty and private.
func unpack(r io.Reader, dir string, limits Limits) (layerInfo, error) {
	u := &unpacker{dir: dir, limits: limits, owners: os.Geteuid() == 0, dirAt: map[string]int{}, buf: make([]byte, 256<<10)}
	return u.unpack(r)
}

func (u *unpacker) unpack(r io.Reader) (layerInfo, error) {
	root, err := unix.Open(u.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return u.info, &os.PathError{Op: "open", Path: u.dir, Err: err}
	}
	defer unix.Close(root)
	u.root = root
	u.info.OwnersMapped = !u.owners
	u.parent.fd = -1
	defer u.parent.close()
	u.later(dirMeta{name: ".", mode: 0o755})
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return u.info, badTar(err)
		}
		if u.info.Entries++; u.info.Entries > u.limits.LayerEntries {
			return u.info, u.tooMany()
		}
		if err := u.entry(h, tr); err != nil {
			return u.info, fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
	return u.info, u.finish()
}

// tooMany: directories that have no entry of their own are counted too.
func (u *unpacker) tooMany() error {
	return fmt.Errorf("the layer has more than the %d entries that are allowed: %w", u.limits.LayerEntries, isolation.ErrResourceExhausted)
}

// clean returns a name relative to the root, "." for the root itself. A leading
// slash means the root; ".." is in no honest layer.
func (u *unpacker) clean(name string) (string, error) {
	if len(name) > u.limits.PathBytes {
		return "", refuse("the name has %d bytes, allowed are %d", len(name), u.limits.PathBytes)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", refuse("the name has a zero byte")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", refuse("the name has a .. in it")
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > u.limits.Depth {
		return "", refuse("the name is %d directories deep, allowed are %d", len(parts), u.limits.Depth)
	}
	if len(parts) == 0 {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		// A container's devices come from its runtime. One of number 0/0 would
		// be a whiteout.
		u.info.Skipped.Devices++
		return nil
	}
	name, err := u.clean(h.Name)
	if err != nil {
		return err
	}
	m, err := u.meta(h)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return refuse("the root is not a directory")
		}
		m.name = "."
		u.later(m)
		return nil
	}
	dir, base := path.Split(name)
	p, err := u.openParent(path.Clean(dir))
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(p, base)
	}
	m.name = path.Join(p.name, base)
	if len(m.name) > u.limits.PathBytes || depth(m.name) > u.limits.Depth {
		return refuse("the name is too long or too deep behind symbolic links")
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.mkdir(p, base, m)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(p, base, m, h.Size, r)
	case tar.TypeSymlink:
		return u.symlink(p, base, m, h.Linkname)
	case tar.TypeLink:
		return u.link(p, base, h.Linkname)
	case tar.TypeFifo:
		if err := u.make(p, base, func() error { return unix.Mknodat(p.fd, base, unix.S_IFIFO|0o600, 0) }); err != nil {
			return err
		}
		return u.setAt(p, base, m)
	}
	return refuse("entries of type %q are not known", h.Typeflag)
}

// make makes an entry, in place of one of the same name that came before. It is
// never written into what is there.
func (u *unpacker) make(p *parentDir, base string, create func() error) error {
	err := create()
	if errors.Is(err, unix.EEXIST) {
		if err = u.remove(p, base); err == nil {
			err = create()
		}
	}
	return err
}

// remove removes what an earlier entry made.
func (u *unpacker) remove(p *parentDir, base string) error {
	// The name may have led to the parent that comes next.
	p.asked = "/"
	if gone, err := remove(p.fd, base); gone || err != nil {
		return err
	}
	// A tree. It is moved to a name of its own beside the layer's root first.
	trash := u.dir + ".trash"
	if err := os.Mkdir(trash, 0o700); err != nil {
		return err
	}
	t, err := unix.Open(trash, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Renameat(p.fd, base, t, "x")
	unix.Close(t)
	return errors.Join(err, removeTree(trash))
}

func (u *unpacker) mkdir(p *parentDir, base string, m dirMeta) error {
	err := unix.Mkdirat(p.fd, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		kind, err := kindAt(p.fd, base)
		switch {
		case err != nil:
			return err
		case kind == kindDir:
			u.later(m)
			return nil
		}
		if err := u.remove(p, base); err != nil {
			return err
		}
		if err := unix.Mkdirat(p.fd, base, 0o700); err != nil {
			return os.NewSyscallError("mkdirat", err)
		}
		if kind == kindWhiteout {
			// What is below stays hidden.
			if err := u.opaque(p.fd, base); err != nil {
				return err
			}
		}
	} else if err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	u.later(m)
	return nil
}

func (u *unpacker) file(p *parentDir, base string, m dirMeta, size int64, r io.Reader) error {
	if size > u.limits.FileBytes {
		return fmt.Errorf("the file has %d bytes, allowed are %d: %w", size, u.limits.FileBytes, isolation.ErrResourceExhausted)
	}
	if u.info.Bytes+size > u.limits.LayerBytes || u.info.Bytes+size < 0 {
		return tooBig("the layer", u.limits.LayerBytes)
	}
	u.info.Bytes += size
	fd := -1
	err := u.make(p, base, func() (err error) {
		fd, err = unix.Openat(p.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	for left := size; left > 0; {
		n, err := io.ReadFull(r, u.buf[:min(left, int64(len(u.buf)))])
		if n > 0 {
			if _, werr := f.Write(u.buf[:n]); werr != nil {
				return werr
			}
			left -= int64(n)
		}
		if err != nil && left > 0 {
			return badTar(err)
		}
	}
	// The owner first: a change of it drops set-uid bits and capabilities.
	if u.owners {
		if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
			return chownError(m, err)
		}
	}
	if err := unix.Fchmod(fd, m.mode); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if err := u.setXattrs(fd, m.xattrs, false); err != nil {
		return err
	}
	failpoint.Hit(failpoint.ImageFile)
	return setTime(p.fd, base, m.mtime)
}

func (u *unpacker) symlink(p *parentDir, base string, m dirMeta, target string) error {
	// The target is data; it is only ever resolved inside a container.
	if target == "" || len(target) > u.limits.PathBytes || strings.IndexByte(target, 0) >= 0 {
		return refuse("the target of the symbolic link has %d bytes, or a zero byte", len(target))
	}
	if err := u.make(p, base, func() error { return unix.Symlinkat(target, p.fd, base) }); err != nil {
		return err
	}
	if u.owners {
		if err := unix.Fchownat(p.fd, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return chownError(m, err)
		}
	}
	return setTime(p.fd, base, m.mtime)
}

// link makes a hard link to an earlier entry.
func (u *unpacker) link(p *parentDir, base, target string) error {
	name, err := u.clean(target)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	dir, from := path.Split(name)
	if from == "." || from == "" {
		return refuse("hard link to the root")
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve}
	fd, err := openat2(u.root, path.Clean(dir), &how)
	if err != nil {
		return refuse("hard link to %.200q, which is not there (%v)", target, err)
	}
	defer unix.Close(fd)
	switch kind, err := kindAt(fd, from); {
	case err != nil:
		return refuse("hard link to %.200q, which is not there (%v)", target, err)
	case kind != kindOther:
		return refuse("hard link to %.200q, which is no file", target)
	}
	if same, err := sameAt(fd, from, p.fd, base); err != nil || same {
		return err
	}
	return u.make(p, base, func() error { return unix.Linkat(fd, from, p.fd, base, 0) })
}

// setAt sets owner, mode and time of what was just made.
func (u *unpacker) setAt(p *parentDir, base string, m dirMeta) error {
	if u.owners {
		if err := unix.Fchownat(p.fd, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return chownError(m, err)
		}
	}
	if err := unix.Fchmodat(p.fd, base, m.mode, 0); err != nil {
		return os.NewSyscallError("fchmodat", err)
	}
	return setTime(p.fd, base, m.mtime)
}

func chownError(m dirMeta, err error) error {
	return fmt.Errorf("owner %d:%d: %w; unpack as a user that may set it, or as an ordinary user", m.uid, m.gid, os.NewSyscallError("chown", err))
}

func setTime(dir int, base string, t unix.Timespec) error {
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(dir, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW))
}
