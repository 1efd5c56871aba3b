package oci

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/internal/spawn"
)

// rootScript writes the steps that make a container's root file system of its
// plan, its mounts, and what else is settled before anything runs in there. Names
// in a root that is made here are nobody else's, and are used as they are; names in
// an image, or below what is mounted from the host, may be links to anywhere: they
// are resolved inside the root, step by step (openat2(2), RESOLVE_IN_ROOT).
type rootScript struct {
	spawn.Script
	plan    *plan.Plan
	base    string // of all that is written
	root    string // of the container's, below base
	fd      spawn.Reg
	made    map[string]bool // directories of the root; nil: an image's
	foreign []string        // where others' files are
	uid     int
	gid     int
	free    []spawn.Reg
}

// makeRoot returns the steps. The process that makes them has this user.
func makeRoot(p *plan.Plan, c *spawn.Credential) *spawn.Script {
	s := &rootScript{plan: p, base: p.Staging, root: p.Staging + "/root", uid: int(c.UID), gid: int(c.GID)}
	s.Do("set host name", unix.SYS_SETHOSTNAME, p.Hostname, len(p.Hostname))
	s.Do("take mounts out of the host's sight", unix.SYS_MOUNT, "", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	s.Do("mount tmpfs on "+s.base, unix.SYS_MOUNT, "axo", s.base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("mode=755,size=%d,nr_inodes=%d", p.Root.Size, p.Root.Inodes))
	s.mkdir(s.root)
	s.mkdir(s.base + "/scratch")
	if len(p.Root.Overlay) > 0 {
		s.overlay()
	} else {
		s.made = map[string]bool{"/": true}
		s.Do("mount root", unix.SYS_MOUNT, s.root, s.root, "", unix.MS_BIND, "")
	}
	s.fd = s.open(s.root, s.root, unix.O_PATH|unix.O_DIRECTORY)
	for _, d := range p.Root.Dirs {
		s.dir(d)
	}
	for _, f := range p.Root.Files {
		s.file(f)
	}
	for _, l := range p.Root.Links {
		s.link(l)
	}
	for i, m := range p.Mounts {
		add := func() { s.mount(i, m) }
		if m.Optional {
			s.Optional(add)
		} else {
			add()
		}
	}
	for _, l := range p.Late {
		s.link(l)
	}
	s.mask(p.Masked)
	for _, name := range p.ReadOnly {
		s.readOnly(name)
	}
	if p.Root.ReadOnly {
		s.Do("make root read-only", unix.SYS_MOUNT_SETATTR, s.fd, "", unix.AT_EMPTY_PATH, attributes(unix.MOUNT_ATTR_RDONLY), attributesSize)
	}
	s.loopback()
	s.Do("enter root", unix.SYS_FCHDIR, s.fd)
	// The old root is put on top of the new one and taken away (pivot_root(2),
	// NOTES).
	s.Do("pivot_root", unix.SYS_PIVOT_ROOT, ".", ".")
	s.Do("umount the old root", unix.SYS_UMOUNT2, ".", unix.MNT_DETACH)
	s.Do("enter root", unix.SYS_CHDIR, "/")
	return &s.Script
}

// script makes a cgroup namespace (cgroup_namespaces(7)): its roots are the groups
// that the process is in then.
func (v *visit) script() *spawn.Script {
	s := new(spawn.Script)
	join := func(what string, files []int) {
		for _, fd := range files {
			s.Do(what, unix.SYS_WRITE, fd, "0", 1)
		}
	}
	join("join the programs' control groups", v.in)
	s.Do("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	join("leave the programs' control groups", v.out)
	return s
}

var attributesSize = unsafe.Sizeof(unix.MountAttr{})

func attributes(set uint64) unsafe.Pointer { return unsafe.Pointer(&unix.MountAttr{Attr_set: set}) }

func (s *rootScript) mkdir(name string) *spawn.Step {
	return s.Do("make "+name, unix.SYS_MKDIRAT, unix.AT_FDCWD, name, 0o755)
}

// open opens a path of the host.
func (s *rootScript) open(what, name string, flags int) spawn.Reg {
	r := s.register()
	s.Do("open "+what, unix.SYS_OPENAT, unix.AT_FDCWD, name, flags|unix.O_CLOEXEC, 0).Into(r)
	return r
}

// register is one that holds a descriptor until [rootScript.close].
func (s *rootScript) register() spawn.Reg {
	if n := len(s.free); n > 0 {
		r := s.free[n-1]
		s.free = s.free[:n-1]
		return r
	}
	return s.Register()
}

func (s *rootScript) close(r spawn.Reg) {
	s.Do("close", unix.SYS_CLOSE, r)
	s.free = append(s.free, r)
}

// overlay mounts the layers with an upper one in the scratch file system.
// userxattr is the form that a user namespace may use
// (Documentation/filesystems/overlayfs.rst). The layers get short names first:
// the options have to fit into a page, and programs read them in mountinfo.
func (s *rootScript) overlay() {
	layers := s.plan.Root.Overlay
	s.mkdir(s.base + "/upper")
	s.mkdir(s.base + "/work")
	lower := s.base + "/lower"
	s.mkdir(lower)
	names := make([]string, len(layers))
	for i, l := range layers {
		name := strconv.Itoa(i)
		names[len(layers)-1-i] = name // the topmost comes first
		dir := lower + "/" + name
		s.mkdir(dir)
		if l.FD > 0 {
			s.move(fmt.Sprintf("mount layer %d", i), l.FD, dir)
			continue
		}
		s.bind(l.Source, dir, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	}
	s.Do("enter "+lower, unix.SYS_CHDIR, lower)
	flags := unix.MS_NODEV | unix.MS_NOSUID
	if s.plan.Root.SetID {
		flags = unix.MS_NODEV
	}
	s.Do("mount overlay", unix.SYS_MOUNT, "overlay", s.root, "overlay", flags,
		"lowerdir="+strings.Join(names, ":")+",upperdir=../upper,workdir=../work,userxattr")
}

// move puts a detached mount on a path.
func (s *rootScript) move(what string, fd any, to string) {
	s.Do(what, unix.SYS_MOVE_MOUNT, fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// bind puts what is at a path, with what is mounted below it, on another.
func (s *rootScript) bind(from, to string, attr uint64) {
	s.Do("mount "+from, unix.SYS_MOUNT, from, to, "", unix.MS_BIND|unix.MS_REC, "")
	if attr != 0 {
		s.Do("set attributes of "+from, unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, to, unix.AT_RECURSIVE, attributes(attr), attributesSize)
	}
}

// own reports whether a name is in what is made here.
func (s *rootScript) own(name string) bool {
	return s.made != nil && !slices.ContainsFunc(s.foreign, func(f string) bool { return strings.HasPrefix(name, f+"/") })
}

// dirs makes a directory of our own, and those above it.
func (s *rootScript) dirs(name string) {
	if s.made[name] {
		return
	}
	s.dirs(path.Dir(name))
	s.mkdir(s.root + name).Allow(unix.EEXIST)
	s.made[name] = true
}

// inRoot opens a name that may be a link.
func (s *rootScript) inRoot(name string, flags int, r spawn.Reg) *spawn.Step {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	return s.Do("open "+name, unix.SYS_OPENAT2, s.fd, name, unsafe.Pointer(how), unsafe.Sizeof(*how)).Into(r)
}

// makeAll opens a directory after making what is missing of it.
func (s *rootScript) makeAll(name string) spawn.Reg {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	r := s.register()
	open := s.inRoot(name, flags, r)
	if name == "/" {
		return r
	}
	open.Allow(unix.ENOENT).Else(func() {
		up := s.makeAll(path.Dir(name))
		s.Do("make "+name, unix.SYS_MKDIRAT, up, path.Base(name), 0o755).Allow(unix.EEXIST)
		s.close(up)
		s.inRoot(name, flags, r)
	})
	return r
}

func (s *rootScript) dir(d plan.Dir) {
	name := path.Clean(d.Path)
	if s.own(name) {
		s.dirs(name)
		s.set(s.root+name, d)
		return
	}
	fd := s.makeAll(name)
	if d.Mode != 0 {
		dir := s.register()
		s.Do("open "+name, unix.SYS_OPENAT, fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0).Into(dir)
		s.Do("set mode of "+name, unix.SYS_FCHMOD, dir, d.Mode)
		if !s.mine(d) {
			s.Do("set owner of "+name, unix.SYS_FCHOWN, dir, d.UID, d.GID)
		}
		s.close(dir)
	}
	s.close(fd)
}

// set gives a new directory its mode and owner.
func (s *rootScript) set(name string, d plan.Dir) {
	if d.Mode != 0 && d.Mode != 0o755 {
		s.Do("set mode of "+d.Path, unix.SYS_FCHMODAT, unix.AT_FDCWD, name, d.Mode)
	}
	if !s.mine(d) {
		s.Do("set owner of "+d.Path, unix.SYS_FCHOWNAT, unix.AT_FDCWD, name, d.UID, d.GID, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// mine reports whether a directory belongs to who makes it.
func (s *rootScript) mine(d plan.Dir) bool { return d.UID < 0 || d.UID == s.uid && d.GID == s.gid }

func (s *rootScript) file(f plan.File) {
	name := path.Clean(f.Path)
	r := s.register()
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if s.own(name) {
		s.dirs(path.Dir(name))
		s.Do("make "+name, unix.SYS_OPENAT, unix.AT_FDCWD, s.root+name, flags, f.Mode).Into(r)
	} else {
		up := s.makeAll(path.Dir(name))
		// One of the image's is replaced, also if it is a link.
		s.Do("remove "+name, unix.SYS_UNLINKAT, up, path.Base(name), 0).Allow(unix.ENOENT)
		s.Do("make "+name, unix.SYS_OPENAT, up, path.Base(name), flags, f.Mode).Into(r)
		s.close(up)
	}
	if f.Data != "" {
		s.Do("write "+name, unix.SYS_WRITE, r, []byte(f.Data), len(f.Data)).Want(len(f.Data))
	}
	s.close(r)
}

func (s *rootScript) link(l plan.Link) {
	name := path.Clean(l.Path)
	if s.own(name) {
		s.dirs(path.Dir(name))
		s.Do("make link "+name, unix.SYS_SYMLINKAT, l.Target, unix.AT_FDCWD, s.root+name)
		return
	}
	up := s.makeAll(path.Dir(name))
	s.Do("make link "+name, unix.SYS_SYMLINKAT, l.Target, up, path.Base(name)).Allow(unix.EEXIST)
	s.close(up)
}

// mount adds the mount number i of the plan.
func (s *rootScript) mount(i int, m plan.Mount) {
	target := path.Clean(m.Target)
	own := s.own(target)
	switch {
	case m.Scratch != nil:
		s.scratch(filepath.Join(s.base, "scratch", strconv.Itoa(i)), target, m)
		return
	case own && m.Source == "" && m.FD == 0:
		s.dirs(target)
		s.Do("mount "+m.Type+" on "+target, unix.SYS_MOUNT, m.Type, s.root+target, m.Type, fileSystemFlags(m), m.Data)
		return
	case own && m.FD == 0:
		s.place(m, target)
		s.bind(m.Source, s.root+target, m.Attr)
		s.foreign = append(s.foreign, target)
		return
	}
	s.foreign = append(s.foreign, target)
	var from any = m.FD
	switch {
	case m.FD > 0:
	case m.Source != "":
		from = s.tree(m.Source, unix.AT_FDCWD, m.Source, unix.AT_RECURSIVE, m.Attr)
	default:
		from = s.fileSystem(m)
	}
	to := s.placeInRoot(m, target)
	s.attach("mount "+target, from, to)
	s.close(to)
}

// attach puts a detached mount on an open path.
func (s *rootScript) attach(what string, from any, to spawn.Reg) {
	s.Do(what, unix.SYS_MOVE_MOUNT, from, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if r, ok := from.(spawn.Reg); ok {
		s.close(r)
	}
}

// tree is a detached copy of the mount at a name.
func (s *rootScript) tree(what string, dir any, name string, flags int, attr uint64) spawn.Reg {
	r := s.register()
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	s.Do("open "+what, unix.SYS_OPEN_TREE, dir, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags).Into(r)
	if attr != 0 {
		s.Do("set attributes of "+what, unix.SYS_MOUNT_SETATTR, r, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attributes(attr), attributesSize)
	}
	return r
}

// fileSystemFlags are those of mount(2). The proc file system is always mounted in
// the same way.
func fileSystemFlags(m plan.Mount) uintptr {
	if m.Type == "proc" {
		return unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	}
	return m.Flags
}

// fileSystem is a detached mount of a new file system (fsopen(2)).
func (s *rootScript) fileSystem(m plan.Mount) spawn.Reg {
	fs, r := s.register(), s.register()
	s.Do("open "+m.Type, unix.SYS_FSOPEN, m.Type, unix.FSOPEN_CLOEXEC).Into(fs)
	for opt := range strings.SplitSeq(m.Data, ",") {
		if k, v, ok := strings.Cut(opt, "="); ok {
			s.Do("option "+opt, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, k, v, 0)
		} else if opt != "" {
			s.Do("option "+opt, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, opt, nil, 0)
		}
	}
	s.Do("make "+m.Type, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, nil, nil, 0)
	attr := 0
	for _, f := range []struct {
		flag uintptr
		attr int
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	} {
		if fileSystemFlags(m)&f.flag != 0 {
			attr |= f.attr
		}
	}
	s.Do("mount "+m.Type, unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, attr).Into(r)
	s.close(fs)
	return r
}

// isFile reports whether a mount's place is a file. What is mounted is looked at
// once more when it is: the kernel puts no directory on a file.
func isFile(m plan.Mount) bool {
	switch {
	case m.FD > 0:
		var st unix.Stat_t
		err := unix.Fstat(m.FD, &st)
		return err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR
	case m.Source == m.Target && system.has(m.Source): // the host's own
		return system.kind(m.Source) == kindFile
	}
	return kindOf(m.Source) == kindFile
}

// place makes the place of a mount in a directory of our own.
func (s *rootScript) place(m plan.Mount, target string) {
	if !isFile(m) {
		s.dirs(target)
		return
	}
	s.dirs(path.Dir(target))
	s.Do("make "+target, unix.SYS_MKNODAT, unix.AT_FDCWD, s.root+target, unix.S_IFREG|0o644, 0)
}

// placeInRoot opens the place of a mount, after making it.
func (s *rootScript) placeInRoot(m plan.Mount, target string) spawn.Reg {
	if !isFile(m) {
		return s.makeAll(target)
	}
	r := s.register()
	s.inRoot(target, unix.O_PATH, r).Allow(unix.ENOENT).Else(func() {
		up := s.makeAll(path.Dir(target))
		// A dangling link of the image is not followed to make its end.
		s.Do("make "+target, unix.SYS_MKNODAT, up, path.Base(target), unix.S_IFREG|0o644, 0)
		s.close(up)
		s.inRoot(target, unix.O_PATH|unix.O_NOFOLLOW, r)
	})
	return r
}

// scratch makes the directory that has the name, and binds it on its place.
func (s *rootScript) scratch(name, target string, m plan.Mount) {
	d := *m.Scratch
	d.Path = target
	s.mkdir(name)
	s.set(name, d)
	// It has what the file system's own mount has.
	attr := m.Attr &^ (unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if s.own(target) {
		s.dirs(target)
		s.bind(name, s.root+target, attr)
		return
	}
	from := s.tree(target, unix.AT_FDCWD, name, 0, attr)
	to := s.makeAll(target)
	s.attach("mount "+target, from, to)
	s.close(to)
}

// mask hides files behind the null device and directories behind an empty one
// that nobody can write to. What is not there needs no mask. What the host's kernel has
// is tried first: to put a file on a directory costs the kernel a grace period.
func (s *rootScript) mask(names []string) {
	empty := plan.Mount{
		Type: "tmpfs", Data: "nr_inodes=1,mode=555", Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
	}
	one := s.base + "/empty" // for all: a file system is made and taken away again for more than a mount
	if s.made != nil && len(names) > 0 {
		s.mkdir(one)
		s.Do("mount an empty directory", unix.SYS_MOUNT, empty.Type, one, empty.Type, empty.Flags, empty.Data)
	}
	var null spawn.Reg
	if s.made == nil && len(names) > 0 {
		null = s.register()
		s.inRoot("/dev/null", unix.O_PATH, null)
	}
	for _, name := range names {
		if s.made != nil { // these are the kernel's names
			s.maskKernel(name, one, system.kind(name))
			continue
		}
		to := s.register()
		s.inRoot(name, unix.O_PATH, to).Allow(unix.ENOENT).Then(func() {
			from := s.tree("/dev/null", null, "", 0, 0)
			// The kernel puts no file on a directory.
			s.Do("mask "+name, unix.SYS_MOVE_MOUNT, from, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).
				Allow(unix.ENOTDIR).Allow(unix.EINVAL).Else(func() { s.attach("mask "+name, s.fileSystem(empty), to) })
			s.close(from)
			s.close(to)
		})
	}
}

// maskKernel masks a name of the kernel's. One that has become something else since it
// was looked at is an error; one that has come since is seen here.
func (s *rootScript) maskKernel(name, empty string, k kind) {
	what, to := "mask "+name, s.root+name
	bind := func(from string) *spawn.Step {
		return s.Do(what, unix.SYS_MOUNT, from, to, "", unix.MS_BIND, "").Allow(unix.ENOENT)
	}
	switch null := s.root + "/dev/null"; k {
	case kindFile:
		bind(null)
	case kindDir:
		bind(empty)
	default:
		s.Do(what, unix.SYS_FACCESSAT, unix.AT_FDCWD, to, unix.F_OK).Allow(unix.ENOENT).Then(func() {
			bind(null).Allow(unix.ENOTDIR).Else(func() { bind(empty) })
		})
	}
}

func (s *rootScript) readOnly(name string) {
	what := "make " + name + " read-only"
	if s.made != nil {
		s.Do(what, unix.SYS_MOUNT, s.root+name, s.root+name, "", unix.MS_BIND|unix.MS_REC, "").Allow(unix.ENOENT).Then(func() {
			s.Do(what, unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, s.root+name, unix.AT_RECURSIVE, attributes(unix.MOUNT_ATTR_RDONLY), attributesSize)
		})
		return
	}
	fd := s.register()
	s.inRoot(name, unix.O_PATH, fd).Allow(unix.ENOENT).Then(func() {
		s.attach(what, s.tree(name, fd, "", unix.AT_RECURSIVE, unix.MOUNT_ATTR_RDONLY), fd)
		s.close(fd)
	})
}

// loopback sets the interface lo up (netdevice(7)).
func (s *rootScript) loopback() {
	fd := s.register()
	s.Do("open a socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).Into(fd)
	req := &struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{name: [unix.IFNAMSIZ]byte{'l', 'o'}, flags: unix.IFF_UP}
	s.Do("bring up lo", unix.SYS_IOCTL, fd, unix.SIOCSIFFLAGS, unsafe.Pointer(req))
	s.close(fd)
}
