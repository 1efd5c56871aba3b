package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/layer"
)

// Bounds of the files that are sent for one step.
const maxEntries = 200_000

// entry is a file of an archive, by its clean name, with its content.
type entry struct {
	*tar.Header
	name    string
	content io.Reader
}

// readArchive calls each for the entries of a tar, compressed by gzip or not, which comes
// from a stranger: of files, directories and links only, with names below its root, and
// with at most so many bytes.
func readArchive(r io.Reader, bytesMax int64, each func(entry) error) error {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var in io.Reader = br
	if bytes.Equal(head, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(br)
		if err != nil {
			return invalid("the archive is damaged: %v", err)
		}
		defer z.Close()
		in = z
	}
	// Names and padding are bounded too.
	left := &bound{r: in, left: bytesMax + maxEntries*2048, of: bytesMax}
	t := tar.NewReader(left)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return damaged(err)
		}
		if n == maxEntries {
			return fmt.Errorf("the archive has more than %d entries: %w", maxEntries, isolation.ErrResourceExhausted)
		}
		name := path.Clean(h.Name)
		if path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") || len(name) > layer.MaxName || strings.ContainsRune(name, 0) {
			return invalid("the archive has the entry %.200q, which is outside of it", h.Name)
		}
		if bytesMax -= h.Size; bytesMax < 0 {
			return left.tooBig()
		}
		if err := each(entry{h, name, t}); err != nil {
			return err
		}
	}
}

func damaged(err error) error {
	if isolation.Class(err) != nil {
		return err
	}
	return invalid("the archive is damaged: %v", err)
}

// bound fails past its bound.
type bound struct {
	r        io.Reader
	left, of int64
}

func (b *bound) tooBig() error {
	return fmt.Errorf("the archive has more than %d bytes: %w", b.of, isolation.ErrResourceExhausted)
}

func (b *bound) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, b.tooBig()
	}
	return n, err
}

// CheckArchive reads an archive to its end, and says what is wrong with it.
func CheckArchive(r io.Reader, bytesMax int64) error {
	return readArchive(r, bytesMax, func(e entry) error {
		if _, err := e.record(""); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, e.content)
		if err != nil {
			return damaged(err)
		}
		return nil
	})
}

// record is an entry as the sandbox gets it; mode is that which files are to have, in
// octal, "" their own.
func (e entry) record(mode string) (layer.Record, error) {
	r := layer.Record{Name: e.name, Mode: uint32(e.Mode) & 0o7777, MTime: e.ModTime.UnixNano()}
	if mode != "" {
		m, err := strconv.ParseUint(mode, 8, 32)
		if err != nil {
			return r, invalid("mode %.20q", mode)
		}
		r.Mode = uint32(m)
		if e.Typeflag == tar.TypeDir {
			r.Mode |= r.Mode & 0o444 >> 2 // who may read it may enter it
		}
	}
	switch e.Typeflag {
	case tar.TypeReg:
		r.Type, r.Size = layer.File, e.Size
	case tar.TypeDir:
		r.Type = layer.Dir
	case tar.TypeSymlink:
		r.Type, r.Target = layer.Symlink, e.Linkname
	case tar.TypeLink:
		r.Type, r.Target = layer.Link, path.Clean(e.Linkname)
		if path.IsAbs(r.Target) || r.Target == ".." || strings.HasPrefix(r.Target, "../") {
			return r, invalid("%.200q is a link to %.200q, which is outside of the archive", e.name, e.Linkname)
		}
	default:
		return r, invalid("%.200q is neither a file nor a directory nor a link", e.name)
	}
	if len(r.Target) > layer.MaxName {
		return r, invalid("%.200q is a link of %d bytes", e.name, len(r.Target))
	}
	return r, nil
}

// source is what a COPY takes of an archive.
type source struct {
	// prefix is what of their names entries leave behind: "", or a directory and a slash.
	prefix string
	one    string // the source's own name, if it has no pattern
}

func sourceOf(src string) source {
	src = path.Clean(src)
	if src == "." {
		return source{}
	}
	if at := strings.IndexAny(src, "*?[{"); at >= 0 {
		return source{prefix: src[:strings.LastIndex(src[:at], "/")+1]}
	}
	return source{one: src, prefix: src + "/"}
}

// place is the name of an entry below the destination; ok is false if it is none of the
// source's. The source itself, a file, is file.
func (s source) place(name string) (to string, file, ok bool) {
	switch {
	case name == ".":
		return "", false, false
	case s.one != "" && name == s.one:
		return path.Base(name), true, true
	case strings.HasPrefix(name, s.prefix):
		return name[len(s.prefix):], false, true
	}
	return "", false, false
}

// records writes what a COPY takes of an archive, for the sandbox.
func (s Step) records(w io.Writer, archive io.Reader, bytesMax int64) error {
	src, any := sourceOf(s.Args[0]), false
	bw := bufio.NewWriterSize(w, 256<<10)
	err := readArchive(archive, bytesMax, func(e entry) error {
		to, file, ok := src.place(e.name)
		if !ok || file && e.Typeflag == tar.TypeDir {
			any = any || ok
			return nil
		}
		r, err := e.record(s.arg(3))
		if err != nil {
			return err
		}
		r.Name = to
		if r.Type == layer.Link {
			if r.Target, _, ok = src.place(r.Target); !ok {
				return invalid("%.200q is a link to %.200q, which is not copied", e.name, e.Linkname)
			}
		}
		any = true
		if err := layer.Write(bw, r); err != nil || r.Type != layer.File {
			return err
		}
		if _, err := io.CopyN(bw, e.content, r.Size); err != nil {
			return damaged(err)
		}
		return nil
	})
	if err == nil && !any {
		err = invalid("the archive has no %.200q", s.Args[0])
	}
	if err == nil {
		err = layer.Write(bw, layer.Record{Type: layer.End})
	}
	return errors.Join(err, bw.Flush())
}

// single reports whether all that a COPY takes of an archive is the one file that it names.
func (s Step) single(archive io.Reader, bytesMax int64) (bool, error) {
	src, single := sourceOf(s.Args[0]), false
	if src.one == "" {
		return false, nil
	}
	err := readArchive(archive, bytesMax, func(e entry) error {
		if e.name == src.one {
			single = e.Typeflag != tar.TypeDir
		}
		return nil
	})
	return single, err
}
