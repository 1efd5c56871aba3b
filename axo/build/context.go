package build

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/axocoatl/isolation"
)

// Files are archives, by their hash. They have no names, and are gone with this process.
type Files map[string]*os.File

// Open opens one.
func (f Files) Open(hash string) (io.ReadCloser, error) {
	file, ok := f[hash]
	if !ok {
		return nil, notFound("files", hash)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(file, 0, info.Size())), nil
}

// Close ends what Open has opened.
func (f Files) Close() {
	for _, file := range f {
		file.Close() // it was only read
	}
}

// Pack gives the COPY steps of a Dockerfile their files, of a directory, as archives. What
// .dockerignore there names is left out; links are kept, and not followed, and nothing
// outside of the directory is read.
func (d *Dockerfile) Pack(contextDir string) (_ Files, err error) {
	root, err := os.OpenRoot(contextDir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	ignored, err := ignoreOf(root)
	if err != nil {
		return nil, err
	}
	files := Files{}
	defer func() {
		if err != nil {
			files.Close()
		}
	}()
	for i := range d.Steps {
		src, ok := d.Sources[i]
		if !ok {
			continue
		}
		hash, err := files.pack(root, src, ignored)
		if err != nil {
			return nil, fmt.Errorf("COPY %s: %w", src, err)
		}
		d.Steps[i].FilesHash = hash
	}
	return files, nil
}

// ignoreOf reads .dockerignore.
func ignoreOf(root *os.Root) (*patternmatcher.PatternMatcher, error) {
	var patterns []string
	f, err := root.Open(".dockerignore")
	if err == nil {
		defer f.Close()
		var b []byte
		if b, err = readBounded(f); err == nil {
			patterns, err = ignorefile.ReadAll(bytes.NewReader(b))
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf(".dockerignore: %w", err)
	}
	return patternmatcher.New(patterns)
}

// pack writes the files that a source means, and returns their hash: of all but their times.
func (f Files) pack(root *os.Root, src string, ignored *patternmatcher.PatternMatcher) (hash string, err error) {
	clean := path.Clean(src)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", invalid("it is outside of the directory")
	}
	list := []string{clean}
	if strings.ContainsAny(clean, "*?[") {
		var err error
		if list, err = fs.Glob(root.FS(), clean); err != nil {
			return "", invalid("%v", err)
		}
	}
	temp, err := os.CreateTemp("", "axo-build-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			temp.Close()
		}
	}()
	if err := os.Remove(temp.Name()); err != nil {
		return "", err
	}
	p := packer{root: root, ignored: ignored, t: tar.NewWriter(temp), h: sha256.New()}
	for _, name := range list {
		if err := fs.WalkDir(root.FS(), name, p.add); err != nil {
			return "", err
		}
	}
	if p.n == 0 {
		return "", fmt.Errorf("there is no such file: %w", isolation.ErrNotFound)
	}
	if err := p.t.Close(); err != nil {
		return "", err
	}
	hash = hex.EncodeToString(p.h.Sum(nil))
	if had := f[hash]; had != nil {
		had.Close()
	}
	f[hash] = temp
	return hash, nil
}

type packer struct {
	root    *os.Root
	ignored *patternmatcher.PatternMatcher
	t       *tar.Writer
	h       hash.Hash
	n       int
}

func (p *packer) add(name string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if name == "." {
		return nil
	}
	skip, err := p.ignored.MatchesOrParentMatches(name)
	if err != nil {
		return err
	}
	if skip {
		if d.IsDir() && !p.ignored.Exclusions() {
			return fs.SkipDir
		}
		return nil
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = p.root.Readlink(name); err != nil {
			return err
		}
	case !info.IsDir() && !info.Mode().IsRegular():
		return invalid("%s is neither a file nor a directory nor a link", name)
	}
	p.n++
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 0, 0, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	fmt.Fprintf(p.h, "%q %o %d %q\n", h.Name, h.Mode, h.Size, link)
	if err := p.t.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(io.MultiWriter(p.t, p.h), f)
	if err == nil && n != h.Size {
		err = fmt.Errorf("%s has changed meanwhile", name)
	}
	return err
}
