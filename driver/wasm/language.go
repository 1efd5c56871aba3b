package wasm

import (
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// Language is an interpreter, compiled to a WASI command, that runs source in
// this tier.
type Language struct {
	Name   string // "python", "js"
	Path   string // of the module
	Digest string // of the module, "sha256:" and 64 hex digits
}

func (l Language) validate() error {
	if err := isolation.ValidateLanguage(l.Name); err != nil {
		return err
	}
	var s source
	return s.parseDigest(l.Digest)
}

// source returns the module. Its digest is believed here, so that a run need
// not read all of it; who compiles it checks.
func (l Language) source() (source, error) {
	info, err := os.Stat(l.Path)
	if err != nil || !info.Mode().IsRegular() {
		return source{}, fmt.Errorf("the interpreter of %s is gone (%s); install it again: %w", l.Name, l.Path, isolation.ErrNotFound)
	}
	s := source{size: info.Size(), path: l.Path}
	return s, s.parseDigest(l.Digest)
}

func (s *source) parseDigest(d string) error {
	h, ok := strings.CutPrefix(d, "sha256:")
	b, err := hex.DecodeString(h)
	if !ok || err != nil || len(b) != len(s.digest) {
		return fmt.Errorf("digest %.80q is not sha256:<64 hex digits>: %w", d, isolation.ErrInvalidArgument)
	}
	copy(s.digest[:], b)
	return nil
}

// dialect is how an interpreter is spoken to. A language without one gets its
// command line as it is.
type dialect struct {
	// names of the programs that it stands for, as paths' last elements.
	names []string
	// code is the flag that code follows.
	code string
	// args makes the interpreter's command line of the caller's; nil: the same.
	args func([]string) []string
	// boot, where there is one, is code that imports what most programs do,
	// reads the record of a program from stdin, and becomes it.
	boot string
	// private is environment that the interpreter looks at when it starts, by
	// prefix: with it a program does not fit one that has started.
	private []string
}

//go:embed boot.py
var bootPython string

//go:embed boot.js
var bootJS string

var dialects = map[string]*dialect{
	"python": {names: []string{"python3", "python"}, code: "-c", boot: bootPython, private: []string{"PYTHON", "LC_", "LANG"}},
	"js":     {names: []string{"node", "qjs", "js"}, code: "-e", args: quickJS},
}

// quickJS makes QuickJS's command line of node's. Code is run by a prologue that
// gives it a few of the names that it would have there.
func quickJS(args []string) []string {
	if len(args) < 3 || args[1] != "-e" {
		return append([]string{"qjs", "--std"}, args[1:]...)
	}
	rest := args[3:]
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	return append([]string{"qjs", "--std", "-e", bootJS, "--", args[2]}, rest...)
}

// check refuses a command line that is none of the interpreter's.
func (d *dialect) check(language string, args []string) error {
	if d == nil || slices.Contains(d.names, path.Base(args[0])) {
		return nil
	}
	return &isolation.UnsupportedError{
		Feature: fmt.Sprintf("the program %q of the language %s in the WASM tier", args[0], language),
		Need:    fmt.Sprintf("a command line of the interpreter (%s %s CODE), or a container or a microVM", d.names[0], d.code),
	}
}

// command is the interpreter's command line.
func (d *dialect) command(args []string) []string {
	if d == nil || d.args == nil {
		return args
	}
	return d.args(args)
}

// fits reports whether a program can run in an interpreter that has started
// already: code on the command line, and no environment that it would have
// looked at.
func (d *dialect) fits(ps isolation.ProcessSpec) bool {
	if d == nil || d.boot == "" || len(ps.Args) < 3 || ps.Args[1] != d.code || ps.Limits.Fuel > 0 {
		return false
	}
	return !slices.ContainsFunc(ps.Env, func(e string) bool {
		return slices.ContainsFunc(d.private, func(p string) bool { return strings.HasPrefix(e, p) })
	})
}

// bootArgs is the command line that starts an interpreter ahead.
func (d *dialect) bootArgs() []string { return []string{d.names[0], d.code, d.boot} }

// record is what boot reads: two lengths, then the arguments and the
// environment, each string with a NUL after it.
func record(ps isolation.ProcessSpec) []byte {
	args, env := strings.Join(ps.Args, "\x00")+"\x00", ""
	for _, e := range ps.Env {
		env += e + "\x00"
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(args)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(env)))
	return append(append(b, args...), env...)
}

// languages lists what is installed and there, by name.
func (c *Config) languages() []string {
	var names []string
	for _, l := range c.Languages {
		if _, err := l.source(); err == nil {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (c *Config) language(name string) (Language, bool) {
	i := slices.IndexFunc(c.Languages, func(l Language) bool { return l.Name == name })
	if i < 0 {
		return Language{}, false
	}
	return c.Languages[i], true
}
