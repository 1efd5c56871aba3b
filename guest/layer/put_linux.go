package layer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs one of the program's two commands; see the builder for what it wants.
func Main(args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == "pack":
		since := int64(math.MaxInt64) // nothing has changed
		if args[1] != "" {
			if _, err := fmt.Sscan(args[1], &since); err != nil {
				return fmt.Errorf("mark %q: %w", args[1], err)
			}
		}
		if err := Pack(out, "", since); err != nil {
			return err
		}
		// What a program has written last may be lost with its end: who reads all of
		// it closes the input then.
		_, err := io.Copy(io.Discard, in)
		return err
	case len(args) == 4 && args[0] == "put":
		return Put(in, args[1], args[2], args[3] == "into")
	}
	return fmt.Errorf("layer: no such command: %q", args)
}

// Put makes files of records. They go into the directory dest, or, if it is not said
// to be one and is none, the only file becomes dest. All belong to owner, USER or
// USER:GROUP, names or numbers of this system's. Directories that are there stay as they are.
func Put(r io.Reader, dest, owner string, into bool) error {
	uid, gid, err := owners(owner)
	if err != nil {
		return err
	}
	p := putter{uid: uid, gid: gid}
	if st, err := os.Stat(dest); err == nil && st.IsDir() {
		into = true
	}
	br := bufio.NewReaderSize(r, 256<<10)
	for {
		rec, err := Read(br)
		if err != nil {
			return fmt.Errorf("read what is to be copied: %w", err)
		}
		if rec.Type == End {
			return nil
		}
		name := dest
		if into {
			name = path.Join(dest, rec.Name)
		}
		if err := p.put(br, rec, name, path.Join(dest, rec.Target)); err != nil {
			return err
		}
	}
}

type putter struct{ uid, gid int }

// dirs makes a directory and those above it.
func (p putter) dirs(name string) error {
	st, err := os.Stat(name)
	if err == nil && !st.IsDir() {
		return &os.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
	}
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := p.dirs(path.Dir(name)); err != nil {
		return err
	}
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	return os.Chown(name, p.uid, p.gid)
}

func (p putter) put(r io.Reader, rec Record, name, target string) error {
	if rec.Type == Dir {
		if st, err := os.Stat(name); err == nil && st.IsDir() {
			return nil
		}
		if err := p.dirs(name); err != nil {
			return err
		}
		return unix.Chmod(name, rec.Mode)
	}
	if err := p.dirs(path.Dir(name)); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	switch rec.Type {
	case File:
		return p.file(r, rec, name)
	case Symlink:
		return errors.Join(os.Symlink(rec.Target, name), os.Lchown(name, p.uid, p.gid))
	case Link:
		return os.Link(target, name)
	}
	return fmt.Errorf("%s: type %q cannot be copied: %w", name, rec.Type, ErrRecord)
}

func (p putter) file(r io.Reader, rec Record, name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, r, rec.Size); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	// The owner first: a change of it drops set-uid bits.
	if err := errors.Join(f.Chown(p.uid, p.gid), unix.Fchmod(int(f.Fd()), rec.Mode), f.Close()); err != nil {
		return err
	}
	return os.Chtimes(name, time.Time{}, time.Unix(0, rec.MTime))
}

// owners returns the numbers of USER or USER:GROUP.
func owners(owner string) (uid, gid int, err error) {
	user, group, both := strings.Cut(owner, ":")
	u, err := entry("/etc/passwd", user)
	if err != nil {
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(u[2]); err != nil {
		return 0, 0, fmt.Errorf("user %q: %w", user, err)
	}
	gid = uid
	if len(u) > 3 {
		if gid, err = strconv.Atoi(u[3]); err != nil {
			return 0, 0, fmt.Errorf("user %q: %w", user, err)
		}
	}
	if both {
		g, err := entry("/etc/group", group)
		if err != nil {
			return 0, 0, err
		}
		if gid, err = strconv.Atoi(g[2]); err != nil {
			return 0, 0, fmt.Errorf("group %q: %w", group, err)
		}
	}
	return uid, gid, nil
}

// entry is the line of a name or a number in a file of the form of passwd(5); a number
// needs none.
func entry(file, name string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimRight(line, "\n"), ":"); len(f) > 2 && (f[0] == name || f[2] == name) {
			return f, nil
		}
	}
	if _, err := strconv.ParseUint(name, 10, 31); err == nil {
		return []string{name, "", name}, nil
	}
	return nil, fmt.Errorf("%s has no %q", file, name)
}
