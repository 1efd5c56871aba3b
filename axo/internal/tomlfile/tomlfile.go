// Package tomlfile reads TOML that has to be right: a key that nobody knows is an
// error, and every error has its line.
package tomlfile

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/axocoatl/isolation"
)

// MaxBytes is the largest file that is read.
const MaxBytes = 1 << 20

// Error is what is wrong in a file, of class InvalidArgument.
type Error struct {
	File string
	Line int    // from 1; 0: of the file as a whole
	Key  string // dotted; empty: of no one key
	Err  error
}

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += ":" + strconv.Itoa(e.Line)
	}
	if e.Key != "" {
		s += ": " + e.Key
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns what is wrong.
func (e *Error) Unwrap() []error { return []error{e.Err, isolation.ErrInvalidArgument} }

// File says where in a file its keys are.
type File struct {
	name  string
	lines map[string]int
}

// Decode reads data into v, a pointer to a struct. A key that v has no field for is
// refused.
func Decode(name string, data []byte, v any) (File, error) {
	f := File{name: name, lines: map[string]int{}}
	if len(data) > MaxBytes {
		return f, &Error{File: name, Err: fmt.Errorf("it has more than %d bytes", MaxBytes)}
	}
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	var strict *toml.StrictMissingError
	var at *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		var errs []error
		for i := range strict.Errors {
			line, _ := strict.Errors[i].Position()
			errs = append(errs, &Error{name, line, strings.Join(strict.Errors[i].Key(), "."), errors.New("there is no such key")})
		}
		return f, errors.Join(errs...)
	case errors.As(err, &at):
		line, _ := at.Position()
		return f, &Error{name, line, strings.Join(at.Key(), "."), errors.New(strings.TrimPrefix(at.Error(), "toml: "))}
	case err != nil:
		return f, &Error{File: name, Err: err}
	}
	f.index(data)
	return f, nil
}

// index finds the line of each key. The document was decoded before, so it is TOML.
func (f File) index(data []byte) {
	var p unstable.Parser
	p.Reset(data)
	table := ""
	counts := map[string]int{}
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			table = f.key(&p, "", e)
		case unstable.ArrayTable:
			name := f.key(&p, "", e)
			table = name + "." + strconv.Itoa(counts[name])
			f.lines[table] = f.lines[name]
			counts[name]++
		case unstable.KeyValue:
			f.pair(&p, table, e)
		}
	}
}

func (f File) pair(p *unstable.Parser, table string, e *unstable.Node) {
	key := f.key(p, table, e)
	f.value(p, key, e.Value())
}

func (f File) value(p *unstable.Parser, key string, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			f.pair(p, key, it.Node())
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			f.value(p, key+"."+strconv.Itoa(i), it.Node())
		}
	}
}

// key returns a node's key, below a table, and notes its line.
func (f File) key(p *unstable.Parser, table string, e *unstable.Node) string {
	key := table
	line := 0
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if key != "" {
			key += "."
		}
		key += string(n.Data)
		if line == 0 {
			line = p.Shape(n.Raw).Start.Line
		}
	}
	f.lines[key] = line
	return key
}

// Errorf says what is wrong with a key. Its line is the key's, or of the nearest one
// above it that is there.
func (f File) Errorf(key, format string, a ...any) error {
	return &Error{File: f.name, Key: key, Line: f.line(key), Err: fmt.Errorf(format, a...)}
}

// At says where a key is: FILE:LINE: KEY.
func (f File) At(key string) string {
	if line := f.line(key); line > 0 {
		return fmt.Sprintf("%s:%d: %s", f.name, line, key)
	}
	return f.name + ": " + key
}

func (f File) line(key string) int {
	for k := key; k != ""; {
		if line, ok := f.lines[k]; ok {
			return line
		}
		i := strings.LastIndexByte(k, '.')
		if i < 0 {
			break
		}
		k = k[:i]
	}
	return 0
}
