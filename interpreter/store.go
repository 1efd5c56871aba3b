// Package interpreter keeps the interpreters, compiled to WASI commands, that
// run source in the WASM tier: one for a language, by digest, in a directory of
// its own. It knows no drivers.
package interpreter

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
)

// Interpreter is one that is installed.
type Interpreter struct {
	Language string    `json:"language"`
	Version  string    `json:"version"`
	License  string    `json:"license"`          // as its package says it; "unknown"
	Source   string    `json:"source"`           // the package or file that it came from
	Digest   string    `json:"digest"`           // of the module: "sha256:" and 64 hex digits
	Size     int64     `json:"size"`             // of the module, in bytes
	Added    time.Time `json:"added"`            // UTC
	Path     string    `json:"path,omitempty"`   // of the module; not kept
	Broken   string    `json:"broken,omitempty"` // why it cannot be used; not kept
}

// The files of an entry, a directory LANGUAGE@HEX of the store.
const (
	moduleFile = "module.wasm"
	recordFile = "interpreter.json"
	tempPrefix = "tmp-"
	maxRecord  = 64 << 10
)

// Store is a directory of interpreters. An entry comes and goes by one rename,
// so no lock is needed. It is safe for concurrent use, by several processes too.
type Store struct{ dir string }

// Open returns the store in dir, which is made when something is added.
func Open(dir string) Store { return Store{dir} }

// List returns what is installed, by language. An entry that is damaged is
// listed with what is wrong, and the newest first where there are several.
func (s Store) List() ([]Interpreter, error) {
	var list []Interpreter
	var err error
	// Between the listing and the reading of an entry another may take its place.
	for moved, tries := true, 0; moved && tries < 100; tries++ {
		if list, moved, err = s.list(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b Interpreter) int {
		return cmp.Or(strings.Compare(a.Language, b.Language), b.Added.Compare(a.Added))
	})
	return list, nil
}

// list also reports whether an entry went away meanwhile.
func (s Store) list() (list []Interpreter, moved bool, err error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("interpreters: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) || !e.IsDir() {
			continue
		}
		i := s.read(e.Name())
		if i.Broken != "" {
			if _, err := os.Lstat(filepath.Join(s.dir, e.Name())); errors.Is(err, fs.ErrNotExist) {
				moved = true
				continue
			}
		}
		list = append(list, i)
	}
	return list, moved, nil
}

// Usable returns one interpreter for each language: the newest that is whole.
func (s Store) Usable() ([]Interpreter, error) {
	list, err := s.List()
	list = slices.DeleteFunc(list, func(i Interpreter) bool { return i.Broken != "" })
	return slices.CompactFunc(list, func(a, b Interpreter) bool { return a.Language == b.Language }), err
}

func (s Store) read(name string) Interpreter {
	language, hex, _ := strings.Cut(name, "@")
	i := Interpreter{Language: language, Digest: "sha256:" + hex, Path: filepath.Join(s.dir, name, moduleFile)}
	b, err := os.ReadFile(filepath.Join(s.dir, name, recordFile))
	if err != nil {
		i.Broken = err.Error()
		return i
	}
	var r Interpreter
	if len(b) > maxRecord || json.Unmarshal(b, &r) != nil || entryName(r) != name {
		i.Broken = "its record is damaged"
		return i
	}
	r.Path, r.Broken = i.Path, ""
	if info, err := os.Stat(r.Path); err != nil {
		r.Broken = err.Error()
	} else if info.Size() != r.Size {
		r.Broken = fmt.Sprintf("its module has %d bytes instead of %d", info.Size(), r.Size)
	}
	return r
}

func entryName(i Interpreter) string {
	return i.Language + "@" + strings.TrimPrefix(i.Digest, "sha256:")
}

// Remove removes what is installed for a language, or what has a digest, and
// returns it. A name that nothing has is NotFound.
func (s Store) Remove(name string) ([]Interpreter, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(i Interpreter) bool { return i.Language != name && i.Digest != name })
	if len(list) == 0 {
		return nil, fmt.Errorf("no interpreter %q is installed: %w", name, isolation.ErrNotFound)
	}
	for n, i := range list {
		if err := s.discard(entryName(i)); err != nil {
			return list[:n], err
		}
	}
	return list, nil
}

// discard takes an entry out by one rename, and then deletes it.
func (s Store) discard(name string) error {
	tmp, err := os.MkdirTemp(s.dir, tempPrefix)
	if err != nil {
		return fmt.Errorf("remove interpreter: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove interpreter: %w", err)
	}
	return nil
}
