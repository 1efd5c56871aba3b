package oci

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/driver/internal/root"
)

// probeOverlay makes a container whose root is an overlay of a directory beside
// the images, which tells whether this kernel and that file system take it.
func (e *builtin) probeOverlay(ctx context.Context, create createFunc) (err error) {
	var dir string
	if e.cfg.Images == nil {
		if dir, err = os.MkdirTemp("", "axo-probe-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(dir)) }()
	} else {
		var remove func() error
		if dir, remove, err = e.cfg.Images.TempDir(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, remove()) }()
	}
	id := fmt.Sprintf("probe-%d-%d", os.Getpid(), probes.Add(1))
	pl, err := create(ctx, id, isolation.Spec{Requirement: isolation.Shell, Root: isolation.Root{Path: dir}})
	if err != nil {
		return err
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return pl.Remove(undo)
}

// openRoot finds what a spec names as its root file system. It stays until the
// container is removed.
func (e *builtin) openRoot(ctx context.Context, c *container, spec isolation.Spec) (err error) {
	switch {
	case spec.Root.Image != "":
		c.root, err = e.cfg.Images.Open(ctx, spec.Root.Image)
	case spec.Root.Path != "":
		c.root, err = root.Directory(spec.Root.Path)
	}
	if err != nil || c.root == nil || c.ids.base > 0 {
		return err
	}
	// What is on disk belongs to the host's user, whoever it belonged to in the
	// image. So he is the image's user; or its root, if programs are to become that.
	var st unix.Stat_t
	if err := unix.Stat(c.root.Layers[0], &st); err == nil && int(st.Uid) != os.Geteuid() {
		return proc.Unsupported(fmt.Sprintf("a root file system that belongs to user %d", st.Uid), "root, or a directory of your own: the host's user is the sandbox's")
	}
	if spec.Profile == "session" {
		c.ids.uid, c.ids.gid = 0, 0
		return nil
	}
	if c.root.UID < 0 {
		return proc.Unsupported(fmt.Sprintf("the image's user %q, whose number its /etc/passwd and /etc/group do not tell,", c.root.Config.User), "root, or an image with a numeric user")
	}
	c.ids.uid, c.ids.gid = c.root.UID, c.root.GID
	return nil
}

// openLayers opens the layers as detached mounts, as root. Else there are none:
// the guest binds them by name, and its user namespace has their owner.
func (c *container) openLayers() (open []*os.File, err error) {
	if c.root == nil || c.ids.base == 0 {
		return nil, nil
	}
	for _, dir := range c.root.Layers {
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return open, &os.PathError{Op: "open_tree", Path: dir, Err: err}
		}
		open = append(open, os.NewFile(uintptr(fd), dir))
	}
	return open, nil
}

// readOnlyBind are the attributes of the layers.
const readOnlyBind = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// mapLayers gives the layers the owners that the user namespace of a process
// has: what belongs to user 0 on disk belongs to its user 0
// (mount_setattr(2), MOUNT_ATTR_IDMAP).
func mapLayers(pid int, layers []*os.File) error {
	if len(layers) == 0 {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	for _, f := range layers {
		if err := mapLayer(int(f.Fd()), f.Name(), ns); err != nil {
			return err
		}
	}
	return nil
}

// mapLayer gives the detached mount of a layer the owners of a user namespace.
func mapLayer(fd int, name string, ns *os.File) error {
	set := unix.MountAttr{Attr_set: readOnlyBind | unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &set)
	if errors.Is(err, unix.EINVAL) {
		return proc.Unsupported(fmt.Sprintf("a root file system below %s (idmapped mount: %v)", name, err),
			"a file system that has idmapped mounts, such as ext4, xfs, btrfs or tmpfs; for images, choose it with --state-dir")
	}
	return os.NewSyscallError("mount_setattr", err)
}
