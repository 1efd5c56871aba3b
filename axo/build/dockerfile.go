package build

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/axocoatl/isolation"
)

// Dockerfile is what a file says, in the words of Docker's, of which it has a part.
type Dockerfile struct {
	Plan
	// Sources are what the COPY of a step takes, by the number of the step; one with several
	// sources is several steps.
	Sources map[int]string
}

const maxDockerfile = 1 << 20

// ParseDockerfile reads FROM, COPY, RUN, ENV, WORKDIR, USER, ENTRYPOINT and CMD. What
// else Docker has is refused, by its line: what it asks for would not be done.
func ParseDockerfile(r io.Reader) (*Dockerfile, error) {
	d := &Dockerfile{Plan: Plan{Shell: []string{"/bin/sh", "-c"}, Plain: true}, Sources: map[int]string{}}
	env := map[string]string{}
	all, err := readBounded(r)
	if err != nil {
		return nil, err
	}
	s := bufio.NewScanner(bytes.NewReader(all))
	s.Buffer(nil, len(all)+1)
	number, begun, text := 0, 0, ""
	for s.Scan() {
		number++
		line := strings.TrimSpace(s.Text())
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "#"), "="); ok && strings.HasPrefix(line, "#") && begun == 0 && d.FromImage == "" && strings.TrimSpace(name) == "escape" {
			return nil, refused(number, "the directive escape")
		}
		if strings.HasPrefix(line, "#") || line == "" { // also within an instruction
			continue
		}
		if text == "" {
			begun = number
		}
		rest, more := strings.CutSuffix(line, `\`)
		text += rest
		if more {
			continue
		}
		if err := d.instruction(begun, strings.TrimSpace(text), env); err != nil {
			return nil, err
		}
		text = ""
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if text != "" {
		return nil, at(begun, "the file ends within it")
	}
	if d.FromImage == "" {
		return nil, invalid("the file has no FROM")
	}
	return d, nil
}

// readBounded reads all of a file that people write, which has a bound: what is beyond it
// would not be done.
func readBounded(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err == nil && len(b) > maxDockerfile {
		err = invalid("the file has more than %d bytes", maxDockerfile)
	}
	return b, err
}

func at(line int, format string, args ...any) error {
	return fmt.Errorf("line %d: %w", line, invalid(format, args...))
}

func refused(line int, what string) error {
	return fmt.Errorf("line %d: %s is not done here: %w", line, what, isolation.ErrUnsupported)
}

func (d *Dockerfile) instruction(line int, text string, env map[string]string) error {
	name, rest, _ := strings.Cut(text, " ")
	if at := strings.IndexAny(text, " \t"); at > 0 {
		name, rest = text[:at], strings.TrimSpace(text[at:])
	}
	name = strings.ToUpper(name)
	if strings.Contains(rest, "<<") && (name == Run || name == Copy) && heredoc(rest) {
		return refused(line, "a here-document")
	}
	if d.FromImage == "" && name != "FROM" {
		if name == "ARG" {
			return refused(line, "ARG")
		}
		return at(line, "%s before FROM", name)
	}
	flags, rest, err := flagsOf(line, name, rest)
	if err != nil {
		return err
	}
	if rest == "" {
		return at(line, "%s of nothing", name)
	}
	add := func(kind string, args ...string) { d.Steps = append(d.Steps, Step{Type: kind, Args: args}) }
	words := func() ([]string, error) {
		w, err := split(rest, env)
		if err != nil {
			return nil, at(line, "%s: %v", name, err)
		}
		return w, nil
	}
	switch name {
	case "FROM":
		if d.FromImage != "" {
			return refused(line, "a further FROM (a build of several stages)")
		}
		w, err := words()
		if err != nil {
			return err
		}
		if len(w) != 1 {
			return refused(line, "FROM ... AS")
		}
		d.FromImage = w[0]
	case Run:
		if list, ok := execForm(rest); ok {
			rest = quoteAll(list)
		}
		add(Run, rest)
	case Copy:
		w, err := words()
		if list, ok := execForm(rest); ok {
			w, err = list, nil
		}
		if err != nil {
			return err
		}
		if len(w) < 2 {
			return at(line, "COPY wants sources and a destination")
		}
		dest := w[len(w)-1]
		if len(w) > 2 && !strings.HasSuffix(dest, "/") {
			return at(line, "the destination of several sources is a directory, and ends with a slash")
		}
		owner := flags["chown"]
		if owner == "" {
			owner = "root"
		}
		for _, src := range w[:len(w)-1] {
			d.Sources[len(d.Steps)] = strings.TrimPrefix(src, "/")
			add(Copy, strings.TrimPrefix(src, "/"), dest, owner, flags["chmod"])
		}
	case Env:
		list, err := envOf(rest, env)
		if err != nil {
			return at(line, "ENV: %v", err)
		}
		for i := 0; i < len(list); i += 2 {
			env[list[i]] = list[i+1]
		}
		add(Env, list...)
	case Workdir, User:
		w, err := words()
		if err != nil {
			return err
		}
		if len(w) != 1 {
			return at(line, "%s wants one argument", name)
		}
		add(name, w[0])
	case "ENTRYPOINT", "CMD":
		list, ok := execForm(rest)
		if !ok {
			list = append(append([]string{}, d.Shell...), rest)
		}
		if name == "CMD" {
			d.Cmd = list
		} else {
			d.Entrypoint = list
		}
	default:
		return refused(line, name)
	}
	return nil
}

// flagsOf takes --NAME=VALUE from the beginning of an instruction.
func flagsOf(line int, name, rest string) (map[string]string, string, error) {
	flags := map[string]string{}
	for strings.HasPrefix(rest, "--") {
		flag, after, _ := strings.Cut(rest, " ")
		k, v, _ := strings.Cut(flag[2:], "=")
		if name != Copy || k != "chown" && k != "chmod" {
			return nil, "", refused(line, name+" --"+k)
		}
		flags[k], rest = v, strings.TrimSpace(after)
	}
	if m := flags["chmod"]; m != "" && !octal().MatchString(m) {
		return nil, "", at(line, "--chmod=%.20s: want octal digits", m)
	}
	return flags, rest, nil
}

// heredoc reports whether a word begins with << and a name, outside of quotes.
func heredoc(text string) bool {
	for i, c := 0, byte(0); i+2 < len(text); i++ {
		switch {
		case c != 0 && text[i] == c:
			c = 0
		case c == 0 && (text[i] == '\'' || text[i] == '"'):
			c = text[i]
		case c == 0 && text[i] == '<' && text[i+1] == '<' && text[i+2] != '<' && text[i+2] != ' ' && (i == 0 || text[i-1] == ' '):
			return true
		}
	}
	return false
}

// execForm is a list in JSON.
func execForm(text string) (list []string, ok bool) {
	if !strings.HasPrefix(text, "[") {
		return nil, false
	}
	if json.Unmarshal([]byte(text), &list) != nil || len(list) == 0 {
		return nil, false
	}
	return list, true
}

// quoteAll is a command as a shell reads it, which becomes it.
func quoteAll(list []string) string {
	var out []string
	for _, w := range list {
		out = append(out, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return "exec " + strings.Join(out, " ")
}

// envOf reads NAME=VALUE ..., or NAME VALUE.
func envOf(text string, env map[string]string) ([]string, error) {
	if first, rest, ok := strings.Cut(text, " "); ok && !strings.Contains(first, "=") {
		w, err := split(`"`+strings.ReplaceAll(strings.TrimSpace(rest), `"`, `\"`)+`"`, env)
		if err != nil {
			return nil, err
		}
		return []string{first, strings.Join(w, " ")}, nil
	}
	w, err := split(text, env)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, kv := range w {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%.80q is not NAME=VALUE", kv)
		}
		out = append(out, k, v)
	}
	return out, nil
}

var errQuote = errors.New("a quote is not closed")

// split cuts a line into words, as a shell does, with $NAME and ${NAME} from what ENV has
// said; what has not been said is empty.
func split(text string, env map[string]string) (words []string, err error) {
	var b strings.Builder
	in, word := byte(0), false
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && in != '\'' && i+1 < len(text):
			i++
			if in == '"' && !strings.ContainsRune(`"\$`, rune(text[i])) {
				b.WriteByte('\\')
			}
			b.WriteByte(text[i])
			word = true
		case in != 0 && c == in:
			in = 0
		case in == 0 && (c == '\'' || c == '"'):
			in, word = c, true
		case c == '$' && in != '\'':
			name, n, err := variable(text[i+1:])
			if err != nil {
				return nil, err
			}
			if n == 0 {
				b.WriteByte(c)
			}
			b.WriteString(env[name])
			i, word = i+n, true
		case in == 0 && (c == ' ' || c == '\t'):
			if word {
				words = append(words, b.String())
			}
			b.Reset()
			word = false
		default:
			b.WriteByte(c)
			word = true
		}
	}
	if in != 0 {
		return nil, errQuote
	}
	if word {
		words = append(words, b.String())
	}
	return words, nil
}

// variable reads the name after a dollar sign, and how much of the text that is.
func variable(text string) (name string, n int, err error) {
	if rest, ok := strings.CutPrefix(text, "{"); ok {
		name, _, ok := strings.Cut(rest, "}")
		if !ok || name == "" || strings.TrimFunc(name, isName) != "" {
			return "", 0, fmt.Errorf("${%.40s: only ${NAME} is known", rest)
		}
		return name, len(name) + 2, nil
	}
	n = len(text) - len(strings.TrimLeftFunc(text, isName))
	return text[:n], n, nil
}

func isName(r rune) bool {
	return r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}
