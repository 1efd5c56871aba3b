package isolation

import "fmt"

// language says how an interpreter is given code.
type language struct {
	program string // as it is called on most hosts
	flag    string // the code follows it
	end     string // what stands between the code and its arguments
}

// languages are those of which a command line can be made. Any other name may
// be a Spec.Language too, with a command line of the caller's.
var languages = map[string]language{
	"python": {"python3", "-c", ""},
	"sh":     {"sh", "-c", ""},
	"js":     {"node", "-e", "--"},
}

// ScriptArgs returns the command line that runs code of a language ("python",
// "js", "sh") with arguments. It is the same in every tier: the WASM tier
// gives it to the language's installed interpreter, whatever program it names.
// A language that is not known is of class [ErrUnsupported].
func ScriptArgs(name, code string, args ...string) ([]string, error) {
	l, ok := languages[name]
	if !ok {
		return nil, &UnsupportedError{Feature: fmt.Sprintf("a script of the language %q", name), Need: "a command line of its own; scripts of js, python and sh are known"}
	}
	out := []string{l.program, l.flag, code}
	if l.end != "" && len(args) > 0 {
		out = append(out, l.end)
	}
	return append(out, args...), nil
}

// SourceLanguage returns the language of the source that s runs: "python" for
// Python, "sh" for Shell, Spec.Language for Arbitrary; "" where there is none.
func (s Spec) SourceLanguage() string {
	switch s.Requirement {
	case Python:
		return "python"
	case Shell:
		return "sh"
	case Arbitrary:
		return s.Language
	}
	return ""
}

// ValidateLanguage checks the name of a language: 1 to 32 of [a-z0-9+_-],
// beginning with a letter. The error is of class [ErrInvalidArgument].
func ValidateLanguage(name string) error {
	ok := len(name) > 0 && len(name) <= 32 && name[0] >= 'a' && name[0] <= 'z'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("language %.80q: want a name like python or js, in lower case: %w", name, ErrInvalidArgument)
	}
	return nil
}
