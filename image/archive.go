package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/form"
)

// archive has the files of a docker-archive or an OCI layout.
type archive interface {
	// open opens a file by its name with slashes. The error says
	// [fs.ErrNotExist] if there is none.
	open(name string) (r io.ReadCloser, size int64, err error)
}

func readAll(a archive, name string, limit int64) ([]byte, error) {
	r, _, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := readLimited(r, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

func archiveSource(a archive, name string, want int64) source {
	return func(ctx context.Context, offset int64) (io.ReadCloser, int64, error) {
		r, size, err := a.open(name)
		if err == nil && size != want {
			r.Close()
			err = fmt.Errorf("%s has %d bytes, the manifest says %d", name, size, want)
		}
		if err != nil {
			// No other attempt brings it.
			return nil, 0, fmt.Errorf("%w: %w", ErrDigest, err)
		}
		return struct {
			io.Reader
			io.Closer
		}{&ctxReader{ctx, r}, r}, 0, nil
	}
}

// openRegular opens a file, unless opening it would wait or do something.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, err
	}
	return f, checkRegular(f)
}

func checkRegular(f *os.File) error {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = refuse("%s is not a regular file", f.Name())
	}
	if err != nil {
		f.Close()
	}
	return err
}

// dirArchive is a directory. Links do not lead out of it.
type dirArchive struct{ root *os.Root }

func openDir(dir string) (*dirArchive, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &dirArchive{r}, nil
}

func (d *dirArchive) close() { d.root.Close() }

func (d *dirArchive) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(path.Clean(name), os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, 0, err
	}
	if err := checkRegular(f); err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// oneFile is an archive of one file, under any name.
type oneFile struct{ f *os.File }

func (o oneFile) open(string) (io.ReadCloser, int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(o.f), st.Size(), nil
}

// tarArchive is an uncompressed tar, of which the places of its files are known.
type tarArchive struct {
	f     *os.File
	files map[string]span
	links map[string]string
}

type span struct{ at, size int64 }

func openTar(f *os.File, limits Limits) (*tarArchive, error) {
	a := &tarArchive{f: f, files: map[string]span{}, links: map[string]string{}}
	tr := tar.NewReader(f)
	for n := int64(0); ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return a, nil
		} else if err != nil {
			return nil, refuse("the archive is damaged or ends early: %v", err)
		}
		if n >= limits.LayerEntries {
			return nil, fmt.Errorf("the archive has more than %d entries: %w", limits.LayerEntries, isolation.ErrResourceExhausted)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader takes no more than the headers, and skips by seeking.
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.files[name] = span{at, h.Size}
		case tar.TypeSymlink:
			// Old versions of docker save write the same layer once.
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			a.links[name] = path.Clean(h.Linkname)
		}
	}
}

func (a *tarArchive) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	for range 10 {
		if to, ok := a.links[name]; ok {
			name = to
			continue
		}
		if s, ok := a.files[name]; ok {
			return io.NopCloser(io.NewSectionReader(a.f, s.at, s.size)), s.size, nil
		}
		break
	}
	return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// rootNames are what a root filesystem has and an archive of an image has not.
var rootNames = form.Of(`^(bin|boot|dev|etc|home|lib|lib32|lib64|media|mnt|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)$`)

// isRootFS tells a tar of a root filesystem from one of an image.
func isRootFS(r io.Reader, limits Limits) (bool, error) {
	tr := tar.NewReader(r)
	for n := int64(0); ; n++ {
		h, err := tr.Next()
		switch {
		case err == io.EOF && n == 0:
			return false, refuse("the file is empty, or no tar")
		case err == io.EOF:
			return true, nil
		case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
			return false, refuse("the file is no tar, or ends early (%v)", err)
		case err != nil:
			return false, err
		case n >= limits.LayerEntries:
			return false, fmt.Errorf("the archive has more than %d entries: %w", limits.LayerEntries, isolation.ErrResourceExhausted)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "index.json" || name == "manifest.json" {
			return false, nil
		}
		if top, _, _ := strings.Cut(name, "/"); rootNames().MatchString(top) {
			return true, nil
		}
	}
}
