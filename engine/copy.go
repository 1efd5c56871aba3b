package engine

import (
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
	"strings"

	"github.com/axocoatl/isolation"
)

// Copy is a file, or a directory with what is below it, that is copied into the
// sandbox before the program starts, or out of it when it has ended. Only
// directories and regular files are; anything else, a link too, is refused.
type Copy struct {
	Host  string // path on the host
	Guest string // absolute path in the sandbox
	// Optional: out of the sandbox, it is no error that it is not there.
	Optional bool
}

// Bounds of what is copied in one run, in each direction.
const (
	copyBytes   = 4 << 30
	copyEntries = 100_000
	copyDepth   = 100
)

// guestFiles is a sandbox whose files can be reached, in whole trees.
type guestFiles interface {
	isolation.Files
	guestDirs
}

type guestDirs interface {
	ReadDir(ctx context.Context, name string) ([]fs.FileInfo, error)
	Mkdir(ctx context.Context, name string, mode fs.FileMode) error
}

func filesOf(sb isolation.Sandbox) (guestFiles, error) {
	files, ok1 := isolation.As[isolation.Files](sb)
	dirs, ok2 := isolation.As[guestDirs](sb)
	if !ok1 || !ok2 {
		return nil, &isolation.UnsupportedError{Feature: "copying files", Need: "an engine with the ability " + isolation.AbilityFiles}
	}
	return struct {
		isolation.Files
		guestDirs
	}{files, dirs}, nil
}

// checkCopies refuses what can be seen to fail before anything runs.
func checkCopies(in, out []Copy) error {
	for _, c := range slices.Concat(in, out) {
		if c.Host == "" || !path.IsAbs(c.Guest) || path.Clean(c.Guest) == "/" || strings.ContainsRune(c.Guest+c.Host, 0) {
			return fmt.Errorf("copy %q, %q: want a path on the host and an absolute path in the sandbox, which is not its root: %w", c.Host, c.Guest, isolation.ErrInvalidArgument)
		}
	}
	for _, c := range in {
		info, err := os.Lstat(c.Host)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copy in: %w (%w)", err, isolation.ErrNotFound)
		} else if err != nil {
			return fmt.Errorf("copy in: %w", err)
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return special(c.Host, info.Mode())
		}
	}
	for _, c := range out {
		if info, err := os.Stat(filepath.Dir(c.Host)); err != nil || !info.IsDir() {
			return fmt.Errorf("copy out to %s: its directory is not there: %w", c.Host, isolation.ErrNotFound)
		}
		if info, err := os.Lstat(c.Host); err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("copy out to %s: it is there, and is no regular file: %w", c.Host, isolation.ErrAlreadyExists)
		}
	}
	return nil
}

func special(name string, m fs.FileMode) error {
	return fmt.Errorf("%.500q is neither a directory nor a regular file, but %s: %w", name, m.Type(), isolation.ErrInvalidArgument)
}

// copier copies, and counts.
type copier struct {
	files   guestFiles
	most    int64 // bytes
	bytes   int64
	entries int
}

func (c *copier) count(name string, depth int) error {
	if c.entries++; c.entries > copyEntries || depth > copyDepth {
		return fmt.Errorf("copy %.500q: more than %d files, or %d levels: %w", name, copyEntries, copyDepth, isolation.ErrResourceExhausted)
	}
	return nil
}

// budget is a reader that fails when too much was copied.
type budget struct {
	r io.Reader
	c *copier
}

func (b budget) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.c.bytes += int64(n); b.c.bytes > b.c.most {
		return n, fmt.Errorf("more than %d bytes to be copied: %w", b.c.most, isolation.ErrResourceExhausted)
	}
	return n, err
}

// CopyIn copies files and directories into a sandbox that has [isolation.Files],
// with the rights of its user there.
func CopyIn(ctx context.Context, sb isolation.Sandbox, list ...Copy) error {
	if len(list) == 0 {
		return nil
	}
	if err := checkCopies(list, nil); err != nil {
		return err
	}
	files, err := filesOf(sb)
	if err != nil {
		return err
	}
	c := copier{files: files, most: copyBytes}
	for _, x := range list {
		root, err := os.OpenRoot(filepath.Dir(filepath.Clean(x.Host)))
		if err != nil {
			return err
		}
		err = c.in(ctx, root, filepath.Base(filepath.Clean(x.Host)), path.Clean(x.Guest), 0)
		if err = errors.Join(err, root.Close()); err != nil {
			return fmt.Errorf("copy %s to %s in the sandbox: %w", x.Host, x.Guest, err)
		}
	}
	return nil
}

// in copies what has a name below root. os.Root keeps names that change meanwhile
// from leading elsewhere.
func (c *copier) in(ctx context.Context, root *os.Root, name, guest string, depth int) error {
	if err := c.count(name, depth); err != nil {
		return err
	}
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return special(name, info.Mode())
	}
	if depth == 0 {
		if err := c.files.Mkdir(ctx, path.Dir(guest), 0o755); err != nil {
			return err
		}
	}
	// Without waiting, should it be a FIFO by now.
	f, err := root.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if now, err := f.Stat(); err != nil || now.Mode().Type() != info.Mode().Type() {
		return special(name, fs.ModeIrregular)
	}
	if info.Mode().IsRegular() {
		return c.files.WriteFile(ctx, guest, info.Mode().Perm(), budget{f, c})
	}
	if err := c.files.Mkdir(ctx, guest, info.Mode().Perm()|0o700); err != nil {
		return err
	}
	list, err := f.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := c.in(ctx, root, filepath.Join(name, e.Name()), path.Join(guest, e.Name()), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// CopyOut copies files and directories out of a sandbox that has
// [isolation.Files]. What it says of them is not believed: names lead nowhere but
// below the one that is wanted, and there are bounds.
func CopyOut(ctx context.Context, sb isolation.Sandbox, list ...Copy) error {
	return copyOut(ctx, sb, copyBytes, list)
}

func copyOut(ctx context.Context, sb isolation.Sandbox, most int64, list []Copy) error {
	if len(list) == 0 {
		return nil
	}
	if err := checkCopies(nil, list); err != nil {
		return err
	}
	files, err := filesOf(sb)
	if err != nil {
		return err
	}
	c := copier{files: files, most: most}
	for _, x := range list {
		if err := c.out(ctx, x); err != nil {
			return fmt.Errorf("copy %s of the sandbox to %s: %w", x.Guest, x.Host, err)
		}
	}
	return nil
}

// out copies to a name beside the wanted one, and renames it when all is there. So
// what is there by that name is replaced, also if it has become a link, or stays.
func (c *copier) out(ctx context.Context, x Copy) (err error) {
	root, err := os.OpenRoot(filepath.Dir(filepath.Clean(x.Host)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	info, err := c.files.Stat(ctx, x.Guest)
	if x.Optional && errors.Is(err, isolation.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	temp := ".axo-" + rand.Text()
	if err = c.write(ctx, root, info, path.Clean(x.Guest), temp, 0); err == nil {
		err = root.Rename(temp, filepath.Base(filepath.Clean(x.Host)))
	}
	if err != nil {
		err = errors.Join(err, root.RemoveAll(temp))
	}
	return err
}

// write makes the file or directory name below root. Names and sizes are what the
// sandbox says; the rights are the owner's and, of a program, to execute.
func (c *copier) write(ctx context.Context, root *os.Root, info fs.FileInfo, guest, name string, depth int) (err error) {
	switch {
	case info.Mode().IsRegular():
		return c.fetch(ctx, root, guest, name, info.Mode())
	case info.IsDir():
		if err := c.count(guest, depth); err != nil {
			return err
		}
		if err := root.Mkdir(name, 0o755); err != nil {
			return err
		}
		list, err := c.files.ReadDir(ctx, guest)
		if err != nil {
			return err
		}
		for _, e := range list {
			base := e.Name()
			if err := localName(base); err != nil {
				return err
			}
			if err := c.write(ctx, root, e, path.Join(guest, base), filepath.Join(name, base), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return special(guest, info.Mode())
}
