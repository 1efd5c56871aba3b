package config

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// literal is a value as TOML has it.
func literal(v any) string {
	switch x := v.(type) {
	case string:
		return quote(x)
	case []string:
		quoted := make([]string, len(x))
		for i, e := range x {
			quoted[i] = quote(e)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	return fmt.Sprint(v)
}

// quote makes a string of TOML: those of JSON are.
func quote(s string) string {
	b, _ := json.Marshal(s) // a string always can be
	return string(b)
}

// WriteTOML writes what is set as a file has it; with origins, where each is from.
func (l *Loaded) WriteTOML(w io.Writer, origins bool) error {
	in := ""
	var b strings.Builder
	for _, v := range l.Values() {
		if table, _ := cutLast(v.Key); table != in {
			in = table
			fmt.Fprintf(&b, "\n[%s]\n", in)
		}
		_, name := cutLast(v.Key)
		line := name + " = " + literal(v.Value)
		if origins {
			line += "  # " + v.Origin
		}
		b.WriteString(line + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Example is a file in which every setting is, with its default, as a comment.
func Example() string {
	var b strings.Builder
	b.WriteString("# Settings of axo. Every one is here with its default, as a comment.\n# axo config check reads this file; axo config show --origin tells what holds.\n")
	write := func(in string) {
		for _, s := range settings {
			if s.Group() != in {
				continue
			}
			_, name := cutLast(s.Key)
			fmt.Fprintf(&b, "\n# %s.\n", s.Help)
			c := Default()
			v := s.in(&c)
			value := literal(v.Interface())
			switch v.Interface().(type) {
			case Size, Duration:
				value = quote(fmt.Sprint(v.Interface()))
			case []string:
				value = "[]"
			}
			if s.about != "" {
				fmt.Fprintf(&b, "# Default: %s.\n", s.about)
				value = strings.Replace(value, quote(c.StateDir), `"/var/lib/axo"`, 1)
			}
			fmt.Fprintf(&b, "#%s = %s\n", name, value)
		}
	}
	write("")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n\n# %s.\n[%s]\n", g.help, g.name)
		write(g.name)
	}
	return b.String()
}

// Markdown is docs/CONFIG.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(`# Settings

A setting is in a file, in the environment, or a flag; each of these overrides the one before it. The file is in TOML: the one that ` + "`--config`" + ` or
` + "`AXO_CONFIG`" + ` names; else, for an ordinary user, ` + "`$XDG_CONFIG_HOME/axo/config.toml`" + ` (` + "`~/.config`" + `) where it is there; else ` + "`" + SystemFile + "`" + `. A file
that others can write to is refused, and one with a secret in it that others can read. A key that is no setting is refused, with its line.

` + "`axo config show --origin`" + ` tells what holds, and where it is from; ` + "`axo config check`" + ` reads everything and starts nothing; ` + "`axo config example`" + ` prints a
file with every setting as a comment. Sizes are such as ` + "`64M`" + ` or ` + "`1.5G`" + ` (powers of 1024), times such as ` + "`10s`" + ` or ` + "`1h30m`" + `. Lists are separated by commas
in the environment and in flags; a flag of a list may be repeated.

This file is made from ` + "`axo/config`" + `.
`)
	table := func(in string) {
		b.WriteString("\n| key | environment | flag | default | what |\n|---|---|---|---|---|\n")
		for _, s := range settings {
			if s.Group() != in {
				continue
			}
			flag, def := "", s.Default()
			if s.Flag != "" {
				flag = "`--" + s.Flag + "`"
			}
			c := Default()
			if def != "" && s.about == "" && s.in(&c).Kind() != reflect.Bool {
				def = "`" + def + "`"
			}
			secret := ""
			if s.Secret {
				secret = "; a secret"
			}
			fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s%s |\n", s.Key, s.Env, flag, def, s.Help, secret)
		}
	}
	table("")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n## `[%s]`\n\n%s.\n", g.name, g.help)
		table(g.name)
	}
	return b.String()
}
