package kernel

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
)

const arMagic = "!<arch>\n"

// debData returns the compressed tar with a package's files (deb(5)). The ar
// format is 60 bytes before each member; its libraries are unmaintained.
func debData(r io.ReaderAt, size int64) (*io.SectionReader, error) {
	at := int64(len(arMagic))
	for range 16 {
		var h [60]byte
		if _, err := r.ReadAt(h[:], at); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(h[48:58])), 10, 64)
		at += int64(len(h))
		if err != nil || string(h[58:]) != "`\n" || n < 0 || n > size-at {
			return nil, refuse("a damaged package")
		}
		// GNU ar ends names with a slash.
		if name := strings.TrimRight(string(h[:16]), " /"); strings.HasPrefix(name, "data.tar") {
			return io.NewSectionReader(r, at, n), nil
		}
		at += n + n&1
	}
	return nil, refuse("a package without files")
}

// openDeb adds the files of a package to a tree. Its tar is unpacked to a
// temporary file, so that its members can be read in any order.
func (t *tree) openDeb(f *os.File, size int64, l Limits) error {
	data, err := debData(f, size)
	if err != nil {
		return err
	}
	z, done, err := decompress(data)
	if err != nil {
		return err
	}
	defer done()
	tmp, err := t.temp()
	if err != nil {
		return err
	}
	if _, err := copyLimited(tmp, z, l.Package, "the package"); err != nil {
		return fmt.Errorf("unpack the package: %w", err)
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	tr := tar.NewReader(tmp)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return refuse("the package is damaged: %v", err)
		}
		if n >= l.Entries {
			return fmt.Errorf("the package: %w", tooMany(l.Entries))
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		// The reader takes no more than the headers, and skips by seeking.
		at, err := tmp.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		t.add(path.Clean("/"+h.Name), source{tmp, at, h.Size})
	}
}

// isDeb reports whether a file begins as an ar archive does.
func isDeb(r io.ReaderAt) bool {
	var b [len(arMagic)]byte
	_, err := r.ReadAt(b[:], 0)
	return err == nil && bytes.Equal(b[:], []byte(arMagic))
}
