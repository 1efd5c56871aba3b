package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

// SystemFile is the file of the whole host.
const SystemFile = "/etc/axo/config.toml"

// maxFile bounds a file.
const maxFile = 1 << 20

// Source is where settings come from; each overrides those before it.
type Source struct {
	// File is the file that was asked for. Empty: that of Env's AXO_CONFIG, else of
	// the user, else SystemFile; those need not be there.
	File  string
	Env   []string       // as os.Environ
	Flags *pflag.FlagSet // those of Register, or nil
}

// Loaded is what is set, and by what.
type Loaded struct {
	Config
	File   string // that was read; empty: none
	origin map[string]string
}

// Origin says where a setting's value is from: default, the file, the environment
// variable or the flag.
func (l *Loaded) Origin(key string) string {
	if o := l.origin[key]; o != "" {
		return o
	}
	return "default"
}

// Load reads all sources. An error names the file and line, the variable or the flag
// that it is about.
func Load(src Source) (*Loaded, error) {
	l := &Loaded{Config: Default(), origin: map[string]string{}}
	env := map[string]string{}
	for _, e := range src.Env {
		k, v, _ := strings.Cut(e, "=")
		env[k] = v
	}
	if err := l.find(src.File, env); err != nil {
		return nil, err
	}
	for _, s := range settings {
		v := env[s.Env]
		if v == "" {
			continue
		}
		if err := s.take(&l.Config, v); err != nil {
			return nil, fmt.Errorf("%s in the environment: %w", s.Env, err)
		}
		l.origin[s.Key] = "$" + s.Env
	}
	if src.Flags != nil {
		for _, s := range settings {
			f := src.Flags.Lookup(s.Flag)
			if s.Flag == "" || f == nil || !f.Changed {
				continue
			}
			if _, ours := f.Value.(*flagValue); !ours {
				continue // another command's, of the same name
			}
			if err := s.take(&l.Config, f.Value.String()); err != nil {
				return nil, fmt.Errorf("--%s: %w", s.Flag, err)
			}
			l.origin[s.Key] = "--" + s.Flag
		}
	}
	if err := l.Validate(); err != nil {
		return nil, err
	}
	return l, nil
}

func (s Setting) take(c *Config, text string) error {
	v := s.in(c)
	if err := set(v, text); err != nil {
		return err
	}
	return bounded(v)
}

// find reads the file, if there is one.
func (l *Loaded) find(asked string, env map[string]string) error {
	if asked == "" {
		asked = env["AXO_CONFIG"]
	}
	if asked != "" {
		return l.read(asked)
	}
	list := []string{SystemFile}
	if os.Geteuid() != 0 {
		dir := env["XDG_CONFIG_HOME"]
		if !filepath.IsAbs(dir) && env["HOME"] != "" {
			dir = filepath.Join(env["HOME"], ".config")
		}
		if filepath.IsAbs(dir) {
			list = slices.Insert(list, 0, filepath.Join(dir, "axo", "config.toml"))
		}
	}
	for _, file := range list {
		if err := l.read(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (l *Loaded) read(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	// It names programs that are run, and what is refused.
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("config %s has mode %v, so others can write it: chmod go-w %s", file, mode, file)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(b) > maxFile {
		return fmt.Errorf("config %s is larger than %d bytes", file, maxFile)
	}
	if err := l.decode(file, b); err != nil {
		return err
	}
	for _, s := range settings {
		if mode := info.Mode().Perm(); s.Secret && l.origin[s.Key] != "" && mode&0o044 != 0 {
			return fmt.Errorf("config %s has %s in it and mode %v, so others can read it: chmod 0600 %s", file, s.Key, mode, file)
		}
	}
	l.File = file
	return nil
}

// decode reads a file's text into what is set.
func (l *Loaded) decode(file string, b []byte) error {
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err := d.Decode(&l.Config)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var errs []error
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			key := strings.Join(e.Key(), ".")
			errs = append(errs, fmt.Errorf("%s:%d: there is no setting %s%s", file, row, key, suggestion(key)))
		}
		return errors.Join(errs...)
	case errors.As(err, &bad):
		row, column := bad.Position()
		key := ""
		if k := bad.Key(); len(k) > 0 {
			key = strings.Join(k, ".") + ": "
		} else if lines := strings.Split(string(b), "\n"); row >= 1 && row <= len(lines) {
			if name, _, ok := strings.Cut(lines[row-1], "="); ok {
				key = strings.TrimSpace(name) + ": "
			}
		}
		// What the field is called in the program tells an operator nothing.
		what, _, _ := strings.Cut(strings.TrimPrefix(bad.Error(), "toml: "), " into struct field")
		return fmt.Errorf("%s:%d:%d: %s%s", file, row, column, key, what)
	case err != nil:
		return fmt.Errorf("%s: %w", file, err)
	}
	var tree map[string]any
	if err := toml.Unmarshal(b, &tree); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, s := range settings {
		v, ok := lookup(tree, strings.Split(s.Key, "."))
		if !ok {
			continue
		}
		err := bounded(s.in(&l.Config))
		if _, isText := v.(string); s.in(&l.Config).Type() == reflect.TypeFor[Duration]() && !isText {
			err = fmt.Errorf("%v: want a time in quotes, such as \"10s\" or \"1h30m\"", v) // of what unit?
		}
		if err != nil {
			return fmt.Errorf("%s:%s %s: %w", file, lineOf(b, s.Key), s.Key, err)
		}
		l.origin[s.Key] = file
	}
	return nil
}

func lookup(tree map[string]any, path []string) (any, bool) {
	v, ok := tree[path[0]]
	if !ok || len(path) == 1 {
		return v, ok
	}
	inner, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	return lookup(inner, path[1:])
}

// lineOf is the line on which a key is set, and a colon; nothing, if it is set in a
// way that is not the usual one.
func lineOf(b []byte, key string) string {
	in := ""
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			in = strings.Trim(strings.TrimSpace(line[1:max(1, strings.IndexByte(line, ']'))]), `"`) + "."
		} else if name, _, ok := strings.Cut(line, "="); ok && strings.TrimPrefix(in, ".")+strings.TrimSpace(name) == key {
			return strconv.Itoa(i+1) + ":"
		}
	}
	return ""
}

// suggestion is what somebody may have meant.
func suggestion(key string) string {
	best, least := "", 1+max(2, len(key)/3)
	_, last := cutLast(key)
	for _, s := range settings {
		d := distance(key, s.Key)
		// The right name in the wrong table, or in none.
		if _, own := cutLast(s.Key); own == last {
			d = min(d, 1)
		}
		if d < least {
			best, least = s.Key, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

func cutLast(key string) (table, name string) {
	i := strings.LastIndexByte(key, '.')
	return key[:max(i, 0)], key[i+1:]
}

// distance is how many letters have to be changed, added or left out.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// Strays are variables of the environment that look like settings and are none.
// Known are names that are no settings and have a meaning.
func Strays(env []string, known ...string) (list []string) {
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "AXO_") || name == "AXO_CONFIG" || slices.Contains(known, name) ||
			slices.ContainsFunc(settings, func(s Setting) bool { return s.Env == name }) {
			continue
		}
		list = append(list, name)
	}
	return list
}

// Value is what a setting is.
type Value struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

// redacted stands for a secret.
const redacted = "(set)"

// Values are all settings; a secret's value is not told.
func (l *Loaded) Values() []Value {
	list := make([]Value, 0, len(settings))
	for _, s := range settings {
		v := s.in(&l.Config)
		out := v.Interface()
		switch x := out.(type) {
		case Size, Duration:
			out = fmt.Sprint(x)
		case []string:
			if x == nil {
				out = []string{}
			}
		}
		if s.Secret && !reflect.ValueOf(v.Interface()).IsZero() {
			out = redacted
		}
		list = append(list, Value{s.Key, out, l.Origin(s.Key)})
	}
	return list
}
