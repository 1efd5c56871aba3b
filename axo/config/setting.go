package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// Setting is one field of Config.
type Setting struct {
	Key    string // in the file, such as serve.listen
	Env    string
	Flag   string // empty: it has none
	Help   string
	Secret bool
	// about is what the documents tell for a default that depends on the host.
	about string
	index []int
}

// Group is the first part of the key, or nothing.
func (s Setting) Group() string {
	group, _, ok := strings.Cut(s.Key, ".")
	if !ok {
		return ""
	}
	return group
}

// in is the field in a Config.
func (s Setting) in(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByIndex(s.index) }

// group is a struct of settings, and what it is.
type group struct{ name, help string }

var settings, groups = find(reflect.TypeFor[Config](), "", nil)

// Settings are all settings, in the order of Config.
func Settings() []Setting { return slices.Clone(settings) }

func find(t reflect.Type, prefix string, index []int) (list []Setting, groups []group) {
	for f := range t.Fields() {
		key, at := prefix+f.Tag.Get("toml"), append(slices.Clone(index), f.Index...)
		if f.Type.Kind() == reflect.Struct {
			groups = append(groups, group{key, f.Tag.Get("help")})
			inner, _ := find(f.Type, key+".", at)
			list = append(list, inner...)
			continue
		}
		s := Setting{Key: key, Env: f.Tag.Get("env"), Flag: f.Tag.Get("flag"), Help: f.Tag.Get("help"), Secret: f.Tag.Get("secret") != "", about: f.Tag.Get("default"), index: at}
		if s.Env == "" {
			s.Env = "AXO_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
		}
		list = append(list, s)
	}
	return list, groups
}

// set puts text into a field.
func set(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q: want a whole number", text)
		}
		v.SetInt(int64(n))
	case reflect.Float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("%q: want a number", text)
		}
		v.SetFloat(n)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q: want true or false", text)
		}
		v.SetBool(b)
	case reflect.Slice:
		v.Set(reflect.ValueOf(strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })))
	default:
		return fmt.Errorf("a setting cannot be of type %v", v.Type())
	}
	return nil
}

// bounded refuses numbers that no setting can have.
func bounded(v reflect.Value) error {
	const want = "want a number that is not negative"
	switch v.Kind() {
	case reflect.Int, reflect.Int64:
		if v.Int() < 0 {
			return errors.New(want)
		}
	case reflect.Float64:
		if n := v.Float(); !(n >= 0) || n > 1e12 { // a NaN is not
			return errors.New(want)
		}
	}
	return nil
}

// Register makes the flags of settings of some groups; "" has those of none.
func Register(fs *pflag.FlagSet, groups ...string) {
	for _, s := range settings {
		if s.Flag == "" || !slices.Contains(groups, s.Group()) {
			continue
		}
		help := strings.ToLower(s.Help[:1]) + s.Help[1:]
		if d := s.Default(); d != "" && d != "0" {
			help += " (default " + d + ")"
		}
		f := fs.VarPF(&flagValue{setting: s}, s.Flag, "", help)
		f.DefValue = "" // it is in the help
	}
}

// flagValue is a flag's text, until it is known what else is set.
type flagValue struct {
	setting Setting
	text    string
}

func (f *flagValue) String() string { return f.text }

// Type is what the help calls the value.
func (f *flagValue) Type() string {
	v := f.setting.in(new(Config))
	switch v.Interface().(type) {
	case Duration:
		return "duration"
	case Size:
		return "size"
	case []string:
		return "strings"
	}
	return v.Kind().String()
}

// Set takes a value; one of a list is added to those before it.
func (f *flagValue) Set(text string) error {
	v := f.setting.in(new(Config))
	if err := errors.Join(set(v, text), bounded(v)); err != nil {
		return err
	}
	if v.Kind() == reflect.Slice && f.text != "" {
		text = f.text + "," + text
	}
	f.text = text
	return nil
}

// Default is the default as text.
func (s Setting) Default() string {
	if s.about != "" {
		return s.about
	}
	c := Default()
	return text(s.in(&c))
}

func text(v reflect.Value) string {
	if list, ok := v.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v.Interface())
}
