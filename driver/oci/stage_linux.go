package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/internal/spawn"
)

// stage is a bundle on disk, for a runtime. All of it is in a mount namespace
// of the spawner's thread and of what it starts: with the last of these
// processes the kernel takes it away, whatever happens, and nobody else sees it.
type stage struct {
	spawner *spawn.Spawner
	dir     string // where the host shows something else
	base    int    // the host's id of the container's 0
	b       *bundle.Bundle
	config  *specs.Spec // changed by make
	// noUnified takes the control groups of version 2 out of sight.
	noUnified bool
	plan      []byte // a file of the bundle; nil: none
	setID     bool   // set-user-ID files of an image work
}

// stageSize bounds what the runtime and this program write; programs write
// to another file system.
const stageSize = "16m"

// rootDir is where the root is: in the file system of what programs write, which
// they see the size of.
const rootDir = bundle.ScratchDir + "/.root"

// make puts the bundle there.
func (s *stage) make() error { return s.spawner.Do(s.build) }

func (s *stage) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *stage) build() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount slave", err)
	}
	if s.noUnified {
		if err := hideUnified(); err != nil {
			return err
		}
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("axo", s.dir, "tmpfs", flags, "mode=755,size="+stageSize); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: s.dir, Err: err}
	}
	for _, d := range []string{bundle.ScratchDir, mountsDir} {
		if err := os.Mkdir(s.path(d), 0o755); err != nil {
			return err
		}
	}
	scratch := fmt.Sprintf("mode=755,size=%d,nr_inodes=%d", s.b.Root.Size, s.b.Root.Inodes)
	if err := unix.Mount("axo", s.path(bundle.ScratchDir), "tmpfs", flags, scratch); err != nil {
		return os.NewSyscallError("mount tmpfs", err)
	}
	if err := os.Mkdir(s.path(rootDir), 0o755); err != nil {
		return err
	}
	if err := s.root(); err != nil {
		return err
	}
	config := s.config
	if s.plan != nil {
		name := s.path(planFile)
		if err := errors.Join(os.WriteFile(name, s.plan, 0o400), os.Chown(name, s.base, s.base)); err != nil {
			return err
		}
	}
	config.Root = &specs.Root{Path: s.path(rootDir), Readonly: config.Root.Readonly}
	for i := range config.Mounts {
		if err := s.source(&config.Mounts[i], i); err != nil {
			return fmt.Errorf("mount %s: %w", config.Mounts[i].Source, err)
		}
	}
	doc, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("config.json"), doc, 0o644)
}

// hideUnified takes away the version 2 hierarchy that stands beside those of
// version 1, where there is one.
func hideUnified() error {
	const root, unified = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
	second := func(dir string) bool {
		var st unix.Statfs_t
		return unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	if second(root) || !second(unified) {
		return nil
	}
	return os.NewSyscallError("umount "+unified, unix.Unmount(unified, unix.MNT_DETACH))
}

// root makes the root and the writable directories. Those are new and nobody's
// but ours: nothing in them leads elsewhere. In an image's root nothing is made
// here, as what is in there might.
func (s *stage) root() error {
	for _, d := range s.b.Shared {
		if err := s.makeDir(bundle.ScratchDir, d); err != nil {
			return err
		}
	}
	if len(s.b.Root.Overlay) > 0 {
		return s.overlay()
	}
	if err := os.Chown(s.path(rootDir), s.base, s.base); err != nil {
		return err
	}
	for _, d := range s.b.Root.Dirs {
		if err := s.makeDir(rootDir, d); err != nil {
			return err
		}
		if d.Scratch {
			if err := s.makeDir(bundle.ScratchDir, d); err != nil {
				return err
			}
		}
	}
	for _, f := range s.b.Root.Files {
		if err := s.makeDir(rootDir, plan.Dir{Path: filepath.Dir(f.Path), Mode: 0o755, UID: -1, GID: -1}); err != nil {
			return err
		}
		name := s.path(rootDir, f.Path)
		if err := os.WriteFile(name, []byte(f.Data), fs.FileMode(f.Mode)); err != nil {
			return err
		}
		if err := os.Chown(name, s.base, s.base); err != nil {
			return err
		}
	}
	for _, l := range s.b.Root.Links {
		name := s.path(rootDir, l.Path)
		if err := errors.Join(os.Symlink(l.Target, name), os.Lchown(name, s.base, s.base)); err != nil {
			return err
		}
	}
	return nil
}

// overlay mounts the layers, whose owners on disk are the container's ids, below
// a writable one.
func (s *stage) overlay() error {
	ns, err := spawn.UserNamespace(idLines(s.b.Config.Linux.UIDMappings), idLines(s.b.Config.Linux.GIDMappings))
	if err != nil {
		return err
	}
	defer ns.Close()
	lower := s.path("lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return err
	}
	names := make([]string, len(s.b.Root.Overlay))
	for i, l := range s.b.Root.Overlay {
		name := filepath.Join(lower, strconv.Itoa(i))
		names[len(names)-1-i] = name // the topmost comes first
		if err := layer(l.Source, name, ns); err != nil {
			return err
		}
	}
	upper, work := s.path(bundle.ScratchDir, ".upper"), s.path(bundle.ScratchDir, ".work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755), os.Chown(upper, s.base, s.base)); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if s.setID {
		flags = unix.MS_NODEV
	}
	data := "lowerdir=" + strings.Join(names, ":") + ",upperdir=" + upper + ",workdir=" + work
	return os.NewSyscallError("mount overlay", unix.Mount("overlay", s.path(rootDir), "overlay", flags, data))
}

// layer mounts one, with other owners.
func layer(dir, name string, ns *os.File) error {
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	t, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	defer unix.Close(t)
	if err := mapLayer(t, dir, ns); err != nil {
		return err
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(t, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// makeDir makes a directory and those above it. One that is there gets the
// mode and the owner of d, unless it is the top.
func (s *stage) makeDir(top string, d plan.Dir) error {
	name := s.path(top)
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(d.Path), "/"), "/") {
		if part == "" || part == "." {
			return nil
		}
		name = filepath.Join(name, part)
		err := os.Mkdir(name, 0o755)
		if err == nil {
			err = os.Chown(name, s.base, s.base)
		} else if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Chmod(name, d.Mode); err != nil {
		return &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	if d.UID < 0 {
		return nil
	}
	return os.Chown(name, s.base+d.UID, s.base+d.GID)
}

// planFile is the plan of a guest to which no descriptor can be passed.
const planFile = "plan"

// mountsDir is where the sources of mounts are in a stage.
const mountsDir = "mounts"

// source makes the source of a mount reachable for the runtime, which is
// another user on this host, with the terms of the mount on all that is below
// it and its owner mapped: few runtimes can do that by themselves.
func (s *stage) source(m *specs.Mount, n int) error {
	if m.Type != "bind" {
		return nil
	}
	if bundle.IsScratch(*m) || m.Source == planFile {
		m.Source = s.path(m.Source)
		return nil
	}
	t, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(t)
	var attr uint64
	options := []string{"rbind"}
	for _, o := range m.Options {
		if a, ok := recursive[o]; ok {
			attr |= a.attr
			options = append(options, a.option)
		}
	}
	if err := setAttr(t, attr, m); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(t, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	name := s.path(mountsDir, strconv.Itoa(n))
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(name, 0o755)
	} else {
		err = os.WriteFile(name, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(t, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	m.Source, m.Options, m.UIDMappings, m.GIDMappings = name, options, nil, nil
	return nil
}

// recursive are the options that hold for all that is below a mount, and the
// ones of the mount that the runtime makes of it.
var recursive = map[string]struct {
	attr   uint64
	option string
}{
	"rro": {unix.MOUNT_ATTR_RDONLY, "ro"}, "ro": {unix.MOUNT_ATTR_RDONLY, "ro"},
	"rnosuid": {unix.MOUNT_ATTR_NOSUID, "nosuid"}, "nosuid": {unix.MOUNT_ATTR_NOSUID, "nosuid"},
	"rnodev": {unix.MOUNT_ATTR_NODEV, "nodev"}, "nodev": {unix.MOUNT_ATTR_NODEV, "nodev"},
	"rnoexec": {unix.MOUNT_ATTR_NOEXEC, "noexec"},
}

func setAttr(t int, attr uint64, m *specs.Mount) error {
	set := unix.MountAttr{Attr_set: attr}
	if len(m.UIDMappings) > 0 {
		ns, err := spawn.UserNamespace(idLines(m.UIDMappings), idLines(m.GIDMappings))
		if err != nil {
			return err
		}
		defer ns.Close()
		set.Attr_set |= unix.MOUNT_ATTR_IDMAP
		set.Userns_fd = uint64(ns.Fd())
	}
	err := unix.MountSetattr(t, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &set)
	if err != nil && set.Userns_fd != 0 {
		return noIDMap(m.Source, err)
	}
	return os.NewSyscallError("mount_setattr", err)
}

func idLines(m []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, r := range m {
		fmt.Fprintf(&b, "%d %d %d\n", r.ContainerID, r.HostID, r.Size)
	}
	return b.String()
}
