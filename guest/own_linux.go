package guest

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
)

// own is a root file system that this program made itself, by name. No name in it
// is anybody else's, so that there is nothing to be careful about, and a step is a
// system call or two where [tree] takes a dozen.
type own struct {
	root  string
	made  map[string]bool // directories
	bound []string        // where others' files are: names below are theirs
}

func newOwn(root string) *own { return &own{root: root, made: map[string]bool{"/": true}} }

// has reports whether a name is in what this program made. Without o nothing is.
func (o *own) has(name string) bool {
	if o == nil {
		return false
	}
	for _, b := range o.bound {
		if strings.HasPrefix(name, b+"/") {
			return false
		}
	}
	return true
}

// dirs makes a directory and those above it.
func (o *own) dirs(name string) error {
	if o.made[name] {
		return nil
	}
	if err := o.dirs(path.Dir(name)); err != nil {
		return err
	}
	if err := unix.Mkdir(o.root+name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	o.made[name] = true
	return nil
}

func (o *own) dir(d plan.Dir) error {
	name := path.Clean(d.Path)
	if err := o.dirs(name); err != nil {
		return err
	}
	return setByName(o.root+name, d)
}

// setByName gives a new directory its mode and owner.
func setByName(name string, d plan.Dir) error {
	if d.Mode != 0 && d.Mode != 0o755 {
		if err := unix.Chmod(name, d.Mode); err != nil {
			return &os.PathError{Op: "chmod", Path: name, Err: err}
		}
	}
	if d.UID < 0 || d.UID == os.Getuid() && d.GID == os.Getgid() {
		return nil
	}
	return os.Lchown(name, d.UID, d.GID)
}

func (o *own) file(f plan.File) error {
	name := path.Clean(f.Path)
	if err := o.dirs(path.Dir(name)); err != nil {
		return err
	}
	fd, err := unix.Open(o.root+name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, f.Mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for b := []byte(f.Data); len(b) > 0; {
		n, err := unix.Write(fd, b)
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		b = b[n:]
	}
	return nil
}

func (o *own) link(l plan.Link) error {
	name := path.Clean(l.Path)
	if err := o.dirs(path.Dir(name)); err != nil {
		return err
	}
	return unix.Symlink(l.Target, o.root+name)
}

// scratch makes the directory of a mount, which has the name, and binds it.
func (o *own) scratch(m plan.Mount, name string) error {
	if err := o.dirs(m.Target); err != nil {
		return err
	}
	if err := unix.Mkdir(name, 0o755); err != nil {
		return err
	}
	if err := setByName(name, *m.Scratch); err != nil {
		return err
	}
	// It has what the file system's own mount has.
	return bindByName(name, o.root+m.Target, m.Attr&^(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV))
}

func bindByName(from, to string, attr uint64) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if attr == 0 {
		return nil
	}
	set := unix.MountAttr{Attr_set: attr}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(unix.AT_FDCWD, to, unix.AT_RECURSIVE, &set))
}

func (o *own) mount(m plan.Mount) error {
	place := o.root + m.Target
	if m.Source == "" {
		if err := o.dirs(m.Target); err != nil {
			return err
		}
		return os.NewSyscallError("mount", unix.Mount(m.Type, place, m.Type, m.Flags, m.Data))
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		return &os.PathError{Op: "stat", Path: m.Source, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := o.dirs(m.Target); err != nil {
			return err
		}
	} else {
		if err := o.dirs(path.Dir(m.Target)); err != nil {
			return err
		}
		if err := unix.Mknod(place, unix.S_IFREG|0o644, 0); err != nil {
			return fmt.Errorf("make %s: %w", m.Target, err)
		}
	}
	if err := bindByName(m.Source, place, m.Attr); err != nil {
		return err
	}
	o.bound = append(o.bound, m.Target)
	return nil
}
