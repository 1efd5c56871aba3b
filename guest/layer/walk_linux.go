package layer

import (
	"bufio"
	"errors"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// HelperDir is where the builder puts this program. It is no part of what is built.
const HelperDir = ".axo-build"

// own are names of the sandbox, not of its image.
var own = []string{HelperDir, "proc", "sys", "dev", "etc/hosts", "etc/hostname", "etc/resolv.conf"}

// Pack writes what is below a root: of what has changed since a mark, with the
// directories that it is in, the whole, and of all else the name. Only the ctime counts,
// which no program can set (inode(7)); what changes meanwhile is told the next time.
func Pack(w io.Writer, root string, since int64) error {
	p := &packer{w: bufio.NewWriterSize(w, 256<<10), root: root, since: since, links: map[[2]uint64]string{}}
	mark, err := p.mark()
	if err == nil {
		err = Write(p.w, Record{Type: Mark, MTime: mark})
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Lstat(p.path(""), &st)
	}
	if err == nil {
		p.dev = st.Dev
		err = p.dir("")
	}
	if err == nil {
		err = Write(p.w, Record{Type: End})
	}
	return errors.Join(err, p.w.Flush())
}

type packer struct {
	w     *bufio.Writer
	root  string
	since int64
	dev   uint64 // of the root: what is mounted below is not packed
	links map[[2]uint64]string
	above []Record // directories that are not told yet, outermost first
}

func ctime(st *unix.Stat_t) int64 { return st.Ctim.Nano() }

// mark is the ctime of something that is changed now.
func (p *packer) mark() (int64, error) {
	name := p.root + "/" + HelperDir + "/mark"
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDWR|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	// To be sure that its ctime is of now also if it was there.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return ctime(&st), nil
}

func (p *packer) path(name string) string { return p.root + "/" + name }

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// dir packs what is in a directory.
func (p *packer) dir(name string) error {
	d, err := os.Open(p.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone meanwhile
	} else if err != nil {
		return err
	}
	list, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	slices.Sort(list)
	for _, base := range list {
		if err := p.entry(join(name, base)); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) entry(name string) error {
	if slices.Contains(own, name) {
		return nil
	}
	var st unix.Stat_t
	err := unix.Lstat(p.path(name), &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "lstat", Path: p.path(name), Err: err}
	}
	changed := ctime(&st) >= p.since
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if !changed {
			return Write(p.w, Record{Type: Name, Name: name})
		}
		return p.leaf(name, &st)
	}
	if st.Dev != p.dev {
		return nil // something is mounted here
	}
	r := record(Dir, name, &st)
	p.above = append(p.above, r)
	depth := len(p.above)
	if changed {
		if err := p.tell(); err != nil {
			return err
		}
	} else if err := Write(p.w, Record{Type: Name, Name: name}); err != nil {
		return err
	}
	err = p.dir(name)
	if len(p.above) >= depth {
		p.above = p.above[:depth-1]
	}
	return err
}

// tell tells of the directories above what is to be told.
func (p *packer) tell() error {
	for i := range p.above {
		if p.above[i].Type != Dir {
			continue
		}
		if err := Write(p.w, p.above[i]); err != nil {
			return err
		}
		p.above[i].Type = Name
	}
	return nil
}

func record(t Type, name string, st *unix.Stat_t) Record {
	return Record{Type: t, Name: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, MTime: st.Mtim.Nano()}
}

func (p *packer) leaf(name string, st *unix.Stat_t) error {
	r := record(File, name, st)
	key := [2]uint64{st.Dev, st.Ino}
	if first := p.links[key]; first != "" && st.Nlink > 1 {
		r.Type, r.Target = Link, first
		return errors.Join(p.tell(), Write(p.w, r))
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.file(r, st, key)
	case unix.S_IFLNK:
		target, err := os.Readlink(p.path(name))
		if err != nil {
			return err
		}
		r.Type, r.Target = Symlink, target
	case unix.S_IFIFO:
		r.Type = FIFO
	default:
		return nil // sockets and devices are of the moment
	}
	if st.Nlink > 1 {
		p.links[key] = name
	}
	return errors.Join(p.tell(), Write(p.w, r))
}

func (p *packer) file(r Record, st *unix.Stat_t, key [2]uint64) error {
	// Who is root here may read it whatever its mode is.
	f, err := os.OpenFile(p.path(r.Name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	if st.Nlink > 1 {
		p.links[key] = r.Name
	}
	var buf [MaxCap]byte
	if n, err := unix.Fgetxattr(int(f.Fd()), "security.capability", buf[:]); err == nil {
		r.Cap = buf[:n]
	}
	r.Size = st.Size
	if err := errors.Join(p.tell(), Write(p.w, r)); err != nil {
		return err
	}
	n, err := io.CopyN(p.w, f, r.Size)
	if errors.Is(err, io.EOF) { // it has become shorter
		_, err = io.CopyN(p.w, zeros{}, r.Size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
