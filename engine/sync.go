package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/axocoatl/isolation"
)

// checkSync refuses what can be seen to fail before anything runs.
func checkSync(r Request) error {
	for _, c := range r.Sync {
		if c.Host == "" || !path.IsAbs(c.Guest) || path.Clean(c.Guest) == "/" || strings.ContainsRune(c.Guest+c.Host, 0) {
			return fmt.Errorf("sync %q, %q: want a directory of the host and an absolute path in the sandbox, which is not its root: %w", c.Host, c.Guest, isolation.ErrInvalidArgument)
		}
		info, err := os.Stat(c.Host)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("sync: %w (%w)", err, isolation.ErrNotFound)
		case err != nil:
			return fmt.Errorf("sync: %w", err)
		case !info.IsDir():
			return fmt.Errorf("sync: %s is not a directory: %w", c.Host, isolation.ErrInvalidArgument)
		}
	}
	return nil
}

// synced is a directory whose copy the sandbox has.
type synced struct {
	host, guest string
	root        *os.Root
	before      map[string]fs.FileInfo // what was in the copy at first, by path below it
}

// syncIn copies directories into the sandbox. What it has opened is closed by
// closeSyncs.
func (r *run) syncIn(ctx context.Context, sb isolation.Sandbox) error {
	if len(r.r.Sync) == 0 {
		return nil
	}
	files, err := filesOf(sb)
	if err != nil {
		return err
	}
	c := copier{files: files, most: copyBytes}
	for _, x := range r.r.Sync {
		s := &synced{host: x.Host, guest: path.Clean(x.Guest)}
		if s.root, err = os.OpenRoot(x.Host); err != nil {
			return err
		}
		r.syncs = append(r.syncs, s)
		err := c.in(ctx, s.root, ".", s.guest, 0)
		if err == nil {
			s.before, err = list(ctx, files, s.guest)
		}
		if errors.Is(err, isolation.ErrPermissionDenied) {
			err = fmt.Errorf("%w; it must be where the sandbox's user can write, such as below /home/user or /tmp", err)
		}
		if err != nil {
			return fmt.Errorf("copy %s to %s in the sandbox: %w", x.Host, x.Guest, err)
		}
	}
	return nil
}

func (r *run) closeSyncs() error {
	var errs []error
	for _, s := range r.syncs {
		errs = append(errs, s.root.Close())
	}
	return errors.Join(errs...)
}

// syncOut brings what has changed in the copies to the host.
func (r *run) syncOut(ctx context.Context, sb isolation.Sandbox) error {
	if len(r.syncs) == 0 {
		return nil
	}
	files, err := filesOf(sb)
	if err != nil {
		return err
	}
	c := copier{files: files, most: copyBytes}
	for _, s := range r.syncs {
		if err := s.out(ctx, &c); err != nil {
			return fmt.Errorf("copy changes of %s of the sandbox to %s: %w", s.guest, s.host, err)
		}
	}
	return nil
}

// list lists all that is below a directory of the sandbox, by path below it. Only
// directories and regular files may be there, with names that the host can have.
func list(ctx context.Context, files guestFiles, dir string) (map[string]fs.FileInfo, error) {
	out := map[string]fs.FileInfo{}
	todo := []string{"."}
	for len(todo) > 0 {
		rel := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		entries, err := files.ReadDir(ctx, path.Join(dir, rel))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name := path.Join(rel, e.Name())
			if err := localName(e.Name()); err != nil {
				return nil, err
			}
			if !e.IsDir() && !e.Mode().IsRegular() {
				return nil, special(path.Join(dir, name), e.Mode())
			}
			if out[name] != nil { // what is counted once is looked at once
				return nil, fmt.Errorf("%.500q is there twice: %w", name, isolation.ErrInvalidArgument)
			}
			if out[name] = e; len(out) > copyEntries || strings.Count(name, "/") > copyDepth {
				return nil, fmt.Errorf("%.500q: more than %d files, or %d levels: %w", name, copyEntries, copyDepth, isolation.ErrResourceExhausted)
			}
			if e.IsDir() {
				todo = append(todo, name)
			}
		}
	}
	return out, nil
}

// localName refuses a name of the sandbox's that would be something else here.
func localName(base string) error {
	if base == "." || base == ".." || base == "" || strings.ContainsAny(base, "/\\\x00") || !filepath.IsLocal(base) {
		return fmt.Errorf("the name %.100q is none on this host: %w", base, isolation.ErrInvalidArgument)
	}
	return nil
}

// changed reports whether a file of the copy is not as it was.
func (s *synced) changed(name string, now fs.FileInfo) bool {
	was, ok := s.before[name]
	return !ok || was.Mode() != now.Mode() || now.Mode().IsRegular() && (was.Size() != now.Size() || !was.ModTime().Equal(now.ModTime()))
}

// out brings changes to the host: first all content to a directory beside, so that
// a sandbox that fails in between changes nothing, then each to its place. What
// the sandbox does not know of stays.
func (s *synced) out(ctx context.Context, c *copier) (err error) {
	after, err := list(ctx, c.files, s.guest)
	if err != nil {
		return err
	}
	temp := ".axo-" + rand.Text()
	if err := s.root.Mkdir(temp, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.root.RemoveAll(temp)) }()
	var names []string // those that changed, directories before what is in them
	for name, now := range after {
		if s.changed(name, now) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	staged := map[string]string{}
	for i, name := range names {
		if now := after[name]; now.Mode().IsRegular() {
			staged[name] = filepath.Join(temp, strconv.Itoa(i))
			if err := c.fetch(ctx, s.root, path.Join(s.guest, name), staged[name], now.Mode()); err != nil {
				return err
			}
		}
	}
	var gone []string
	for name := range s.before {
		if _, ok := after[name]; !ok {
			gone = append(gone, name)
		}
	}
	slices.SortFunc(gone, func(a, b string) int { return cmp.Compare(b, a) }) // what is in a directory before it
	for _, name := range gone {
		err := s.root.Remove(filepath.FromSlash(name))
		// A directory in which somebody else has put something stays.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !s.before[name].IsDir() {
			return err
		}
	}
	for _, name := range names {
		if err := s.place(filepath.FromSlash(name), staged[name], after[name]); err != nil {
			return err
		}
	}
	return nil
}

// place puts a file, or a directory, where it is to be.
func (s *synced) place(name, from string, now fs.FileInfo) error {
	is, err := s.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case now.IsDir() && is.IsDir():
		return nil
	case now.IsDir() || is.IsDir():
		// What was known of a directory is gone; if it has more, that stays.
		if err := s.root.Remove(name); err != nil {
			return err
		}
	}
	if now.IsDir() {
		return s.root.Mkdir(name, 0o755)
	}
	return s.root.Rename(from, name)
}

// fetch copies a regular file out of the sandbox.
func (c *copier) fetch(ctx context.Context, root *os.Root, guest, name string, mode fs.FileMode) error {
	if err := c.count(guest, 0); err != nil {
		return err
	}
	in, err := c.files.ReadFile(ctx, guest)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644|mode.Perm()&0o111)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, budget{in, c})
	return errors.Join(err, f.Close())
}
