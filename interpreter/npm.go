package interpreter

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/axocoatl/isolation"
)

// Bounds of a package, which is hostile input: what it unpacks to, and how many
// entries it has.
const (
	maxUnpacked = 1 << 30
	maxEntries  = 10000
	maxManifest = 1 << 20
)

// manifest is what is read of an npm package's package.json.
type manifest struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	License string `json:"license"`
}

// fromPackage takes the module of an npm package: a gzip of a tar whose entries
// lie below one directory. Nothing is written but the module.
func fromPackage(r io.Reader, i *Interpreter, o Options, to string) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("package %s: "+format+": %w", append(append([]any{o.File}, a...), isolation.ErrInvalidArgument)...)
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return bad("%w", err)
	}
	bounded := &io.LimitedReader{R: z, N: maxUnpacked}
	t := tar.NewReader(bounded)
	var found []string
	var m manifest
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return bad("%w", err)
		}
		if n >= maxEntries {
			return bad("more than %d entries", maxEntries)
		}
		_, name, _ := strings.Cut(path.Clean("/" + h.Name)[1:], "/")
		switch {
		case h.Typeflag != tar.TypeReg:
		case name == "package.json":
			b, err := io.ReadAll(io.LimitReader(t, maxManifest))
			if err != nil {
				return bad("%w", err)
			}
			// A package without a good one still has its module.
			_ = json.Unmarshal(b, &m)
		case o.Member != "" && name == o.Member, o.Member == "" && wasmName(name):
			found = append(found, name)
			if err := take(t, i, to); err != nil {
				return fmt.Errorf("package %s: %s: %w", o.File, name, err)
			}
		}
	}
	switch {
	case bounded.N <= 0:
		return bad("it unpacks to more than %d bytes", maxUnpacked)
	case len(found) == 0 && o.Member != "":
		return bad("it has no file %s", o.Member)
	case len(found) == 0:
		return bad("it has no .wasm file")
	case len(found) > 1:
		os.Remove(to)
		return bad("it has several modules, name one with its member: %s", strings.Join(found, ", "))
	}
	i.Version, i.License = plain(m.Version), plain(m.License)
	i.Source = plain(path.Base(o.File))
	if m.Name != "" {
		i.Source = plain(m.Name) + "@" + plain(m.Version)
	}
	return nil
}

// plain makes what a package says of itself safe to print.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 100)]
}
