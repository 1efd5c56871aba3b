package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/internal/spawn"
)

// makeRoot builds the root file system of a machine's programs and changes to it. It
// returns the first process of the programs' pid namespace. It runs before any
// program does: nothing here races with hostile code. Names below an overlay
// are the image's, though, and may be links to anywhere: they are resolved
// inside the root (openat2(2), RESOLVE_IN_ROOT).
func (g *guest) makeRoot() (*os.File, error) {
	p := &g.plan
	if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
		return nil, os.NewSyscallError("sethostname", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, os.NewSyscallError("mount private", err)
	}
	scratch := fmt.Sprintf("mode=755,size=%d,nr_inodes=%d", p.Root.Size, p.Root.Inodes)
	if g.vm.Upper.Device != "" {
		if err := mountDisk(g.vm.Upper, p.Staging, unix.MS_NOSUID|unix.MS_NODEV); err != nil {
			return nil, err
		}
	} else if err := unix.Mount("axo", p.Staging, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, scratch); err != nil {
		return nil, &os.PathError{Op: "mount tmpfs", Path: p.Staging, Err: err}
	}
	if g.vm != nil {
		var err error
		if g.vm.stage, err = os.OpenFile(p.Staging, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return nil, err
		}
	}
	// One file system holds all that is written, so that one size bounds it:
	// root (or the overlay's upper layer) and scratch directories.
	base := p.Staging
	for _, d := range []string{"root", "upper", "work", "scratch"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			return nil, err
		}
	}
	root := filepath.Join(base, "root")
	if err := mountOverlay(base, root, &p.Root); err != nil {
		return nil, err
	}
	r, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer r.close()
	for _, d := range p.Root.Dirs {
		if err := r.dir(d); err != nil {
			return nil, fmt.Errorf("directory %s: %w", d.Path, err)
		}
	}
	if err := r.files(p); err != nil {
		return nil, err
	}
	for _, l := range p.Root.Links {
		if err := r.link(l); err != nil {
			return nil, fmt.Errorf("link %s: %w", l.Path, err)
		}
	}
	var init *os.File
	for i, m := range p.Mounts {
		switch {
		case m.Type == "proc":
			init, err = r.proc(m)
		case m.Scratch != nil:
			err = r.scratch(m, filepath.Join(base, "scratch", strconv.Itoa(i)))
		default:
			err = r.mount(m)
		}
		switch {
		case err != nil && m.Optional:
			g.notes = append(g.notes, fmt.Sprintf("mount %s: %v", m.Target, err))
		case err != nil:
			return nil, fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	for _, l := range p.Late {
		if err := r.link(l); err != nil {
			return init, fmt.Errorf("link %s: %w", l.Path, err)
		}
	}
	if init == nil {
		return nil, errors.New("plan: no proc file system")
	}
	if err := r.protect(p); err != nil {
		return init, err
	}
	if p.Root.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(r.fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return init, os.NewSyscallError("mount_setattr", err)
		}
	}
	return init, switchRoot(root)
}

// awaitRoot waits for the process that makes the root.
func (g *guest) awaitRoot() (*os.File, error) {
	unix.CloseOnExec(g.plan.Init)
	defer unix.Close(g.plan.Ready)
	if err := g.bound(); err != nil {
		return nil, err
	}
	var b [1]byte
	for {
		if _, err := unix.Read(g.plan.Ready, b[:]); err != unix.EINTR {
			return os.NewFile(uintptr(g.plan.Init), "init"), os.NewSyscallError("read", err)
		}
	}
}

// enterRoot does what is left to do in a root that a runtime has made. The
// kernel allows another proc only while the one that is there shows all of it
// (mount_too_revealing in fs/namespace.c): what is to be masked is masked in
// the new one.
func (g *guest) enterRoot() (*os.File, error) {
	r, err := openTree("/")
	if err != nil {
		return nil, err
	}
	defer r.close()
	for _, d := range g.plan.Root.Dirs {
		if err := r.dir(d); err != nil {
			return nil, fmt.Errorf("directory %s: %w", d.Path, err)
		}
	}
	if err := r.files(&g.plan); err != nil {
		return nil, err
	}
	for _, m := range g.plan.Mounts {
		if !device(m) || m.Source == "" || m.Attr == 0 {
			continue
		}
		// Runtimes bind them as they are.
		if err := r.restrict(m); err != nil {
			return nil, fmt.Errorf("device %s: %w", m.Target, err)
		}
	}
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc", Err: err}
	}
	g.proc = os.NewFile(uintptr(fd), "/proc")
	init, err := r.proc(plan.Mount{Target: "/proc"})
	if err != nil {
		return nil, err
	}
	return init, errors.Join(unix.Chdir("/"), r.protect(&g.plan))
}

// restrict sets the attributes of a mount that is there.
func (t *tree) restrict(m plan.Mount) error {
	fd, err := t.open(m.Target, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	a := unix.MountAttr{Attr_set: m.Attr}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &a))
}

// protect masks paths and makes them read-only.
func (t *tree) protect(p *plan.Plan) error {
	if err := t.mask(p.Masked); err != nil {
		return err
	}
	for _, name := range p.ReadOnly {
		if err := t.readOnly(name); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	return nil
}

// mountOverlay mounts the layers with an upper one in the scratch file system.
// userxattr is the form that a user namespace may use
// (Documentation/filesystems/overlayfs.rst). The layers get short names first:
// the options have to fit into a page, and programs read them in mountinfo.
func mountOverlay(base, root string, p *plan.Root) error {
	layers := p.Overlay
	lower := filepath.Join(base, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return err
	}
	names := make([]string, len(layers))
	for i, l := range layers {
		name := strconv.Itoa(i)
		names[len(layers)-1-i] = name // the topmost comes first
		if err := mountLayer(l, filepath.Join(lower, name)); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if err := unix.Chdir(lower); err != nil {
		return err
	}
	data := "lowerdir=" + strings.Join(names, ":") + ",upperdir=../upper,workdir=../work,userxattr"
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID)
	if p.SetID {
		flags = unix.MS_NODEV
	}
	if err := unix.Mount("overlay", root, "overlay", flags, data); err != nil {
		return os.NewSyscallError("mount overlay", err)
	}
	return nil
}

func mountLayer(l plan.Layer, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	to, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	from, err := unix.Open(l.Source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: l.Source, Err: err}
	}
	defer unix.Close(from)
	return bind(from, to, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// tree is the root that is being built, by descriptor.
type tree struct {
	fd int
}

func openTree(path string) (*tree, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &tree{fd: fd}, nil
}

func (t *tree) close() { unix.Close(t.fd) }

func (t *tree) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for tries := 100; ; tries-- {
		fd, err := unix.Openat2(t.fd, name, &how)
		// A rename or a mount anywhere on the host disturbs the kernel's check of "..".
		if err != unix.EAGAIN && err != unix.EINTR || tries == 0 {
			return fd, err
		}
	}
}

// parent opens the directory that a name is in, making it and those above.
func (t *tree) parent(name string) (int, string, error) {
	dir, base := filepath.Split(filepath.Clean("/" + name))
	if base == "" {
		return -1, "", fmt.Errorf("%q has no name: %w", name, unix.EINVAL)
	}
	fd, err := t.makeAll(dir)
	return fd, base, err
}

// makeAll opens a directory after making what is missing of it.
func (t *tree) makeAll(dir string) (int, error) {
	fd, err := t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	up, base, err := t.parent(dir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(up)
	if err := unix.Mkdirat(up, base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return t.open(dir, unix.O_PATH|unix.O_DIRECTORY)
}

func (t *tree) dir(d plan.Dir) error {
	fd, err := t.makeAll(d.Path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if d.Mode == 0 {
		return nil
	}
	return set(fd, d)
}

// scratch makes the directory that has the name, and binds it on its place.
func (t *tree) scratch(m plan.Mount, name string) error {
	to, err := t.makeAll(m.Target)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := set(fd, *m.Scratch); err != nil {
		return err
	}
	return bind(fd, to, m.Attr)
}

// set gives an O_PATH directory its mode and owner.
func set(fd int, d plan.Dir) error {
	dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Fchmod(dir, d.Mode); err != nil {
		return err
	}
	if d.UID < 0 || d.UID == os.Getuid() && d.GID == os.Getgid() {
		return nil
	}
	return unix.Fchown(dir, d.UID, d.GID)
}

// bind puts a copy of the mount at from, with those below it, on to.
func bind(from, to int, attr uint64) error {
	m, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(m)
	if attr != 0 {
		a := unix.MountAttr{Attr_set: attr}
		if err := unix.MountSetattr(m, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &a); err != nil {
			return os.NewSyscallError("mount_setattr", err)
		}
	}
	return move(m, to)
}

func move(m, to int) error {
	err := unix.MoveMount(m, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

func (t *tree) files(p *plan.Plan) error {
	for _, f := range p.Root.Files {
		if err := t.file(f); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	return nil
}

func (t *tree) file(f plan.File) error {
	up, base, err := t.parent(f.Path)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	// One of the image's is replaced, also if it is a link.
	if err := unix.Unlinkat(up, base, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := unix.Openat(up, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, f.Mode)
	if err != nil {
		return err
	}
	h := os.NewFile(uintptr(fd), f.Path)
	_, err = h.WriteString(f.Data)
	return errors.Join(err, unix.Fchmod(fd, f.Mode), h.Close())
}

func (t *tree) link(l plan.Link) error {
	up, base, err := t.parent(l.Path)
	if err != nil {
		return err
	}
	defer unix.Close(up)
	if err := unix.Symlinkat(l.Target, up, base); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// place opens the place of a mount of what is at a descriptor, after making it.
func (t *tree) place(name string, from int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return -1, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return t.makeAll(name)
	}
	fd, err := t.open(name, unix.O_PATH)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	up, base, err := t.parent(name)
	if err != nil {
		return -1, err
	}
	defer unix.Close(up)
	// A dangling link of the image is not followed to make its end.
	made, err := unix.Openat(up, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return -1, err
	}
	unix.Close(made)
	return t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
}

func (t *tree) mount(m plan.Mount) error {
	var from int
	var err error
	if m.Source != "" {
		from, err = unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	} else {
		from, err = newFS(m)
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := t.place(m.Target, from)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if m.Source != "" {
		return bind(from, to, m.Attr)
	}
	return move(from, to)
}

// newFS makes a file system (fsopen(2)) and returns its detached mount.
func newFS(m plan.Mount) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for opt := range strings.SplitSeq(m.Data, ",") {
		if opt == "" {
			continue
		}
		if k, v, ok := strings.Cut(opt, "="); ok {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, opt)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", opt, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	attr := 0
	for _, f := range []struct {
		flag uintptr
		attr int
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	} {
		if m.Flags&f.flag != 0 {
			attr |= f.attr
		}
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	return fd, os.NewSyscallError("fsmount", err)
}

// proc starts the first process of the programs' pid namespace, which mounts
// the file system: it shows the namespace of who mounts it.
func (t *tree) proc(m plan.Mount) (*os.File, error) {
	fd, err := t.makeAll(m.Target)
	if err != nil {
		return nil, err
	}
	// The process has a copy of the descriptor, and its name is looked up in
	// the host's proc, which shows nothing of this namespace: so by the
	// working directory.
	defer unix.Close(fd)
	if err := unix.Fchdir(fd); err != nil {
		return nil, err
	}
	return spawn.StartInit(".")
}

// mask hides files behind the null device and directories behind an empty one
// that nobody can write to. What is not there needs no mask.
func (t *tree) mask(names []string) error {
	if len(names) == 0 {
		return nil
	}
	null, err := t.open("/dev/null", unix.O_PATH)
	if err != nil {
		return fmt.Errorf("/dev/null: %w", err)
	}
	defer unix.Close(null)
	for _, name := range names {
		to, err := t.open(name, unix.O_PATH)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
		var st unix.Stat_t
		err = unix.Fstat(to, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			var m int
			if m, err = newFS(plan.Mount{Type: "tmpfs", Data: "nr_inodes=1,mode=555", Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC}); err == nil {
				err = move(m, to)
				unix.Close(m)
			}
		} else if err == nil {
			err = bind(null, to, 0)
		}
		unix.Close(to)
		if err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	return nil
}

func (t *tree) readOnly(name string) error {
	fd, err := t.open(name, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return bind(fd, fd, unix.MOUNT_ATTR_RDONLY)
}

// loopbackUp sets the interface lo up (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("ioctl", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
}
