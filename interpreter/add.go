package interpreter

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
)

// MaxModule is the largest module that is taken, in bytes.
const MaxModule = 256 << 20

// Options of Add. What is empty is taken from the package, or from Check.
type Options struct {
	Language string
	// File is a module, or an npm package (a .tgz, as npm pack writes it) that
	// has one.
	File string
	// Member names the module in a package that has several: a path below the
	// package's root.
	Member           string
	Version, License string
	// Check runs the staged module and returns what it says its version is. An
	// error keeps it out. nil: not run.
	Check func(ctx context.Context, staged Interpreter) (version string, err error)
	Now   func() time.Time // nil: time.Now
}

// Add installs an interpreter for a language in place of any other. Nothing
// changes when it fails: not a WebAssembly module, or one that Check refuses, is
// InvalidArgument.
func (s Store) Add(ctx context.Context, o Options) (Interpreter, error) {
	i := Interpreter{Language: o.Language}
	if err := isolation.ValidateLanguage(o.Language); err != nil {
		return i, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return i, fmt.Errorf("interpreters: %w", err)
	}
	s.sweep()
	tmp, err := os.MkdirTemp(s.dir, tempPrefix)
	if err != nil {
		return i, fmt.Errorf("interpreters: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := stage(ctx, &i, o, filepath.Join(tmp, moduleFile)); err != nil {
		return i, err
	}
	if o.Version != "" {
		i.Version = o.Version
	}
	if o.License != "" {
		i.License = o.License
	}
	if o.Check != nil {
		version, err := o.Check(ctx, i)
		if err != nil {
			return i, fmt.Errorf("%s does not work as an interpreter of %s: %w", o.File, o.Language, err)
		}
		if o.Version == "" && version != "" {
			i.Version = plain(version)
		}
	}
	for _, v := range []*string{&i.Version, &i.License} {
		if *v == "" {
			*v = "unknown"
		}
	}
	now := o.Now
	if now == nil {
		now = time.Now
	}
	i.Added = now().UTC()
	return i, s.commit(&i, tmp)
}

// stage copies the module and learns what its package says of it.
func stage(ctx context.Context, i *Interpreter, o Options, to string) error {
	f, err := os.Open(o.File)
	if err != nil {
		return classed("interpreter", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("interpreter %s is not a regular file: %w", o.File, isolation.ErrInvalidArgument)
	}
	r := bufio.NewReader(&contextReader{ctx, f})
	magic, _ := r.Peek(4) // what is shorter is no module
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return fromPackage(r, i, o, to)
	case o.Member != "":
		return fmt.Errorf("%s is no package, so it has no member %s: %w", o.File, o.Member, isolation.ErrInvalidArgument)
	}
	i.Source = plain(filepath.Base(o.File))
	return take(r, i, to)
}

// take copies one module and checks its first bytes.
func take(r io.Reader, i *Interpreter, to string) error {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("interpreter: %w", err)
	}
	h := sha256.New()
	var head prefix
	n, err := io.Copy(io.MultiWriter(out, h, &head), io.LimitReader(r, MaxModule+1))
	if err == nil {
		err = out.Sync()
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	switch {
	case err != nil:
		return fmt.Errorf("read interpreter: %w", err)
	case n > MaxModule:
		return fmt.Errorf("interpreter has more than %d bytes: %w", MaxModule, isolation.ErrInvalidArgument)
	case string(head) != "\x00asm\x01\x00\x00\x00":
		return fmt.Errorf("interpreter is not a WebAssembly module: %w", isolation.ErrInvalidArgument)
	}
	i.Size, i.Path = n, to
	i.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return nil
}

// prefix keeps the first eight bytes that are written: magic and version of a
// module (WebAssembly core specification, 5.5.16).
type prefix []byte

func (p *prefix) Write(b []byte) (int, error) {
	if room := 8 - len(*p); room > 0 {
		*p = append(*p, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

// commit writes the record and makes the entry visible, in place of others of
// its language.
func (s Store) commit(i *Interpreter, tmp string) error {
	kept := *i
	kept.Path = ""
	b, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, recordFile), b, 0o600); err != nil {
		return fmt.Errorf("interpreter: %w", err)
	}
	name := entryName(*i)
	// A directory is not renamed over another that has something in it.
	if err := s.discard(name); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, name)); err != nil {
		return fmt.Errorf("interpreter: %w", err)
	}
	i.Path = filepath.Join(s.dir, name, moduleFile)
	list, err := s.List()
	if err != nil {
		return err
	}
	for _, old := range list {
		if old.Language == i.Language && old.Digest != i.Digest {
			if err := s.discard(entryName(old)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweep removes what an Add that was killed left. One that still runs is not
// that old.
func (s Store) sweep() {
	old, _ := filepath.Glob(filepath.Join(s.dir, tempPrefix+"*")) // the pattern is good
	for _, dir := range old {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > time.Hour {
			os.RemoveAll(dir)
		}
	}
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(b []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

func classed(what string, err error) error {
	class := isolation.ErrInvalidArgument
	switch {
	case errors.Is(err, fs.ErrNotExist):
		class = isolation.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		class = isolation.ErrPermissionDenied
	}
	return fmt.Errorf("%s: %w: %w", what, err, class)
}

func wasmName(name string) bool { return strings.HasSuffix(name, ".wasm") }
