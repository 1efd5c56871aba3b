package image

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What the OCI image specification calls whiteouts.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh."
)

// The attributes of overlayfs. The trusted ones count in a mount that a
// privileged user made, the others in one with the option userxattr, which is
// the only one inside a user namespace.
const (
	xattrTrustedOpaque = "trusted.overlay.opaque"
	xattrUserOpaque    = "user.overlay.opaque"
	xattrUserWhiteout  = "user.overlay.whiteout"
)

type xattr struct{ name, value string }

const (
	paxXattr      = "SCHILY.xattr."
	maxXattrs     = 64
	maxXattrBytes = 64 << 10
	xattrCap      = "security.capability"
)

// meta reads an entry's owner, mode, time and attributes.
func (u *unpacker) meta(h *tar.Header) (dirMeta, error) {
	m := dirMeta{mode: uint32(h.Mode & 0o7777), uid: h.Uid, gid: h.Gid}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return m, refuse("owner %d:%d", h.Uid, h.Gid)
	}
	// No file system keeps times past these.
	m.mtime = unix.Timespec{Sec: min(max(h.ModTime.Unix(), 0), 1<<33), Nsec: int64(h.ModTime.Nanosecond())}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if len(m.xattrs) >= maxXattrs || len(value) > maxXattrBytes || !u.keepXattr(name, value) {
			u.info.Skipped.Xattrs++
			continue
		}
		m.xattrs = append(m.xattrs, xattr{name, value})
	}
	slices.SortFunc(m.xattrs, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return m, nil
}

// keepXattr says whether an image may set an attribute: capabilities of files,
// and the user's own without those that mean something to overlayfs. Access
// lists and labels name users and policies of another host; trusted ones are
// the host's.
func (u *unpacker) keepXattr(name, value string) bool {
	switch {
	case name == "" || len(name) > 255 || strings.IndexByte(name, 0) >= 0:
		return false
	case name == xattrCap:
		return u.owners && plainCapability(value)
	}
	return strings.HasPrefix(name, "user.") && len(name) > len("user.") && !strings.HasPrefix(name, "user.overlay.")
}

// plainCapability accepts revision 2 of vfs_cap_data. Revision 3 is for one
// user namespace, by a user id of the host.
func plainCapability(v string) bool {
	const revision2, size = 2, 20
	return len(v) == size && binary.LittleEndian.Uint32([]byte(v))>>24 == revision2
}

// setXattrs sets what the file system takes.
func (u *unpacker) setXattrs(fd int, list []xattr, dir bool) error {
	for _, x := range list {
		if dir && x.name == xattrCap {
			u.info.Skipped.Xattrs++
			continue
		}
		err := unix.Fsetxattr(fd, x.name, []byte(x.value), 0)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM), errors.Is(err, unix.E2BIG),
			errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSPC) && x.name != xattrCap:
			u.info.Skipped.Xattrs++
		default:
			return os.NewSyscallError("fsetxattr "+x.name, err)
		}
	}
	return nil
}

// whiteout turns a whiteout into overlayfs's form. It is about lower layers
// only: what this layer has of that name stays, before or after.
func (u *unpacker) whiteout(p *parentDir, base string) error {
	switch {
	case base == whiteoutOpaque && p.name == ".":
		// overlayfs does not look at its layers' roots.
		u.info.OpaqueRoot = true
		return nil
	case base == whiteoutOpaque:
		return u.opaque(p.fd, ".")
	case strings.HasPrefix(base, whiteoutMeta):
		u.info.Skipped.AUFS++
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return refuse("a whiteout of %q", name)
	}
	kind, err := kindAt(p.fd, name)
	switch {
	case errors.Is(err, unix.ENOENT):
		return u.mkWhiteout(p, name)
	case err != nil:
		return err
	case kind == kindDir:
		return u.opaque(p.fd, name)
	}
	return nil
}

func (u *unpacker) mkWhiteout(p *parentDir, name string) error {
	if !u.noMknod {
		// Allowed to everyone since Linux 5.8.
		err := unix.Mknodat(p.fd, name, unix.S_IFCHR, 0)
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
			return os.NewSyscallError("mknodat", err)
		}
		u.noMknod = true
	}
	// The other form (Linux 6.7): an empty file with an attribute, in a
	// directory that says that it has some. An opaque one cannot say that, and
	// needs none.
	if opaque, err := getOpaque(p.fd, "."); err != nil || opaque == "y" {
		return err
	}
	fd, err := unix.Openat(p.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, xattrUserWhiteout, []byte{'y'}, 0); err != nil {
		return os.NewSyscallError("fsetxattr "+xattrUserWhiteout, err)
	}
	return u.mark(p.fd, ".", "x", true)
}

func isXattrWhiteout(dir int, base string) bool {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = unix.Fgetxattr(fd, xattrUserWhiteout, nil)
	return err == nil
}

// opaque makes a directory hide what lower layers have in it.
func (u *unpacker) opaque(dir int, name string) error {
	if u.noMknod {
		if err := dropXattrWhiteouts(dir, name); err != nil {
			return err
		}
	}
	return u.mark(dir, name, "y", false)
}

func getOpaque(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	b := make([]byte, 8)
	n, err := unix.Fgetxattr(fd, xattrUserOpaque, b)
	if errors.Is(err, unix.ENODATA) {
		return "", nil
	} else if err != nil {
		return "", os.NewSyscallError("fgetxattr", err)
	}
	return string(b[:n]), nil
}

// dropXattrWhiteouts removes the whiteouts of a directory that will be opaque,
// where they would show as files.
func dropXattrWhiteouts(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if isXattrWhiteout(fd, n) {
			if err := unix.Unlinkat(fd, n, 0); err != nil {
				return os.NewSyscallError("unlinkat", err)
			}
		}
	}
	return nil
}

// mark sets the opaque attributes. "y" hides all; "x" says that there are
// whiteouts in the form of attributes, and does not replace a "y".
func (u *unpacker) mark(dir int, name, value string, create bool) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	flags := 0
	if create {
		flags = unix.XATTR_CREATE
	}
	err = unix.Fsetxattr(fd, xattrUserOpaque, []byte(value), flags)
	if err != nil && !(create && errors.Is(err, unix.EEXIST)) {
		return os.NewSyscallError("fsetxattr "+xattrUserOpaque, err)
	}
	// Both, because the mount is not known yet.
	err = unix.Fsetxattr(fd, xattrTrustedOpaque, []byte(value), flags)
	if err != nil && !(create && errors.Is(err, unix.EEXIST)) && !errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("fsetxattr "+xattrTrustedOpaque, err)
	}
	return nil
}
