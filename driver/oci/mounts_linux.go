package oci

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/internal/spawn"
)

// reserved are the directories that a caller's mount may not be, or be above.
var reserved = []string{"/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc"}

func (e *builtin) checkMount(m isolation.Mount) error {
	dst := path.Clean(m.Destination)
	for _, r := range reserved {
		if dst == "/" || dst == r || strings.HasPrefix(dst, r+"/") || strings.HasPrefix(r, dst+"/") {
			return fmt.Errorf("mount on %s: the sandbox has a %s of its own: %w", m.Destination, r, isolation.ErrInvalidArgument)
		}
	}
	return nil
}

// openMounts adds the mounts of the caller's directories to the plan. As root
// they are opened here and handed over as descriptors, numbered from 1; else the
// guest binds them by name, with the caller's rights, which it has.
func (e *builtin) openMounts(c *container, p *plan.Plan, mounts []isolation.Mount) (open []*os.File, err error) {
	for _, m := range mounts {
		info, err := os.Stat(m.Source)
		if err != nil {
			return open, fmt.Errorf("mount %s: %w (%w)", m.Source, err, isolation.ErrNotFound)
		}
		attr := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
		if m.ReadOnly {
			attr |= unix.MOUNT_ATTR_RDONLY
		}
		pm := plan.Mount{Target: path.Clean(m.Destination), File: !info.IsDir()}
		if c.ids.single {
			pm.Source, pm.Attr = m.Source, attr
			p.Mounts = append(p.Mounts, pm)
			continue
		}
		f, err := c.detached(m.Source, attr, p.Process.UID, p.Process.GID)
		if err != nil {
			return open, fmt.Errorf("mount %s: %w", m.Source, err)
		}
		open = append(open, f)
		pm.FD = len(open)
		p.Mounts = append(p.Mounts, pm)
	}
	return open, nil
}

// detached is a copy of the mount at a directory, in which the directory's
// owner is the sandbox's user: files keep their owner on the host, whoever that
// is, and nobody else's can be touched (mount_setattr(2), MOUNT_ATTR_IDMAP).
func (c *container) detached(source string, attr uint64, uid, gid int) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	f := os.NewFile(uintptr(fd), source)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fstat", err)
	}
	ns, err := c.mapOwner(int(st.Uid), int(st.Gid), uid, gid)
	if err != nil {
		f.Close()
		return nil, err
	}
	defer ns.Close()
	set := unix.MountAttr{Attr_set: attr | unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &set)
	if err == nil {
		return f, nil
	}
	f.Close()
	return nil, proc.Unsupported(fmt.Sprintf("a mount of %s (idmapped mount: %v)", source, err), "a file system that has idmapped mounts, such as ext4, xfs, btrfs or tmpfs")
}

// mapOwner makes a user namespace that maps the owner of a directory to the
// sandbox's user. Its process ends at once; the namespace lives in the
// descriptor.
func (c *container) mapOwner(uid, gid, toUID, toGID int) (*os.File, error) {
	return spawn.UserNamespace(
		fmt.Sprintf("%d %d 1\n", uid, c.ids.base+toUID), fmt.Sprintf("%d %d 1\n", gid, c.ids.base+toGID))
}
