package oci

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/oci/internal/document"
	"github.com/axocoatl/isolation/internal/spawn"
)

// detached is a copy of the mount at a directory, in which its owner is the
// sandbox's user: files keep their owner on the host, whoever that is, and nobody
// else's can be touched (mount_setattr(2), MOUNT_ATTR_IDMAP).
func detached(source string, attr uint64, x document.Idmapped) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	f := os.NewFile(uintptr(fd), source)
	ns, err := spawn.UserNamespace(x.UIDMap, x.GIDMap)
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
	return nil, noIDMap(source, err)
}

func noIDMap(source string, err error) error {
	return proc.Unsupported(fmt.Sprintf("a mount of %s (idmapped mount: %v)", source, err), "a file system that has idmapped mounts, such as ext4, xfs, btrfs or tmpfs")
}
