package build

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/layer"
)

// tree is the names of all files of a sandbox, and when it was looked at. Of those that
// are no directories for sure it has false.
type tree struct {
	names map[string]bool
	bytes int // of the names
	mark  int64
}

// Bounds of what a sandbox may make the host remember.
const (
	maxNames     = 1_000_000
	maxNameBytes = 128 << 20
)

// readTree reads what the helper has packed, all of which may be a lie. What has changed
// since before is written to a tar; nil: there is nothing before.
func readTree(r io.Reader, before *tree, w *tar.Writer) (tree, error) {
	t := tree{names: map[string]bool{}}
	br := bufio.NewReaderSize(r, 256<<10)
	for {
		rec, err := layer.Read(br)
		if err != nil {
			return t, fmt.Errorf("read the sandbox's files: %w", noEOF(err))
		}
		switch rec.Type {
		case layer.Mark:
			t.mark = rec.MTime
			continue
		case layer.End:
			return t, nil
		}
		name := rec.Name
		if name == "" || name != path.Clean(name) || path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsRune(name, 0) {
			return t, fmt.Errorf("the sandbox has a file %.200q: %w", name, isolation.ErrInvalidArgument)
		}
		// What would hide others when the layer is unpacked.
		if strings.HasPrefix(path.Base(name), whiteout) {
			if rec.Type != layer.Name {
				return t, fmt.Errorf("%.200q: a name that begins with %s cannot be in an image: %w", name, whiteout, isolation.ErrInvalidArgument)
			}
			continue
		}
		dir, there := t.names[name]
		if !there {
			t.bytes += len(name)
		}
		t.names[name] = dir || rec.Type == layer.Name || rec.Type == layer.Dir
		if len(t.names) > maxNames || t.bytes > maxNameBytes {
			return t, fmt.Errorf("the sandbox has more than %d files, or more than %d bytes of names: %w", maxNames, maxNameBytes, isolation.ErrResourceExhausted)
		}
		if rec.Type == layer.Name {
			// Where a file system moves directories as they are, what is in them has not
			// changed, and the layer would not have it.
			if _, ok := before.has(name); before != nil && !ok {
				return t, fmt.Errorf("%.200q is where it was not before, as it was: its directory was moved, or something above it unmounted; copy it instead: %w", name, isolation.ErrUnsupported)
			}
			continue
		}
		to := io.Discard
		if w != nil {
			if err := w.WriteHeader(header(rec)); err != nil {
				return t, err
			}
			to = w
		}
		if rec.Type == layer.File {
			if _, err := io.CopyN(to, br, rec.Size); err != nil {
				return t, noEOF(err)
			}
		}
	}
}

// has finds a name in a tree; nil has none.
func (t *tree) has(name string) (dir, ok bool) {
	if t == nil {
		return false, false
	}
	dir, ok = t.names[name]
	return dir, ok
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// whiteout begins the name of what a layer takes away (OCI image specification, layer.md).
const whiteout = ".wh."

func header(r layer.Record) *tar.Header {
	h := &tar.Header{
		Name: r.Name, Mode: int64(r.Mode & 0o7777), Uid: int(r.UID), Gid: int(r.GID), ModTime: time.Unix(0, r.MTime).Truncate(time.Second), Format: tar.FormatPAX,
	}
	switch r.Type {
	case layer.Dir:
		h.Typeflag, h.Name = tar.TypeDir, r.Name+"/"
	case layer.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, r.Target
	case layer.Link:
		h.Typeflag, h.Linkname = tar.TypeLink, r.Target
	case layer.FIFO:
		h.Typeflag = tar.TypeFifo
	default:
		h.Typeflag, h.Size = tar.TypeReg, r.Size
		if r.Cap != nil {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(r.Cap)}
		}
	}
	return h
}

// gone are the names that were there and are not any more, without those in directories
// that are not there either.
func gone(before, after tree) (list []string) {
	for name := range before.names {
		if _, ok := after.names[name]; ok {
			continue
		}
		if dir := path.Dir(name); dir != "." {
			if !after.names[dir] {
				continue
			}
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// layerOf writes the layer of what has changed since a tree was read; pack has the
// sandbox tell.
func layerOf(ctx context.Context, w io.Writer, before tree, pack func(ctx context.Context, since int64, read func(io.Reader) error) error) error {
	t := tar.NewWriter(w)
	err := pack(ctx, before.mark, func(r io.Reader) error {
		after, err := readTree(r, &before, t)
		if err != nil {
			return err
		}
		for _, name := range gone(before, after) {
			dir, base := path.Split(name)
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteout + base, Format: tar.FormatPAX}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.Close()
}
