package isolation_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/axocoatl/isolation"
)

func TestScriptArgs(t *testing.T) {
	for _, c := range []struct {
		language string
		args     []string
		want     []string
	}{
		{"python", []string{"-a", "b"}, []string{"python3", "-c", "CODE", "-a", "b"}},
		{"js", []string{"-a", "b"}, []string{"node", "-e", "CODE", "--", "-a", "b"}},
		{"js", nil, []string{"node", "-e", "CODE"}},
		{"sh", nil, []string{"sh", "-c", "CODE"}},
	} {
		got, err := isolation.ScriptArgs(c.language, "CODE", c.args...)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s %q: %q, %v; want %q", c.language, c.args, got, err, c.want)
		}
	}
	if _, err := isolation.ScriptArgs("cobol", "x"); !errors.Is(err, isolation.ErrUnsupported) {
		t.Errorf("unknown language: %v", err)
	}
}

func TestSourceLanguage(t *testing.T) {
	for want, s := range map[string]isolation.Spec{
		"python": {Requirement: isolation.Python}, "sh": {Requirement: isolation.Shell},
		"js": {Requirement: isolation.Arbitrary, Language: "js"}, "": {Requirement: isolation.WasmCompiled, Language: "js"},
	} {
		if got := s.SourceLanguage(); got != want {
			t.Errorf("%v: %q, want %q", s.Requirement, got, want)
		}
	}
	for _, name := range []string{"", "Python", "../x", "a/b", "9", "js\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"} {
		if err := isolation.ValidateLanguage(name); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("language %q: %v", name, err)
		}
	}
	if err := isolation.ValidateLanguage("c++"); err != nil {
		t.Error(err)
	}
}
