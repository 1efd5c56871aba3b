package tomlfile_test

import (
	"errors"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/quantity"
	"github.com/axocoatl/isolation/axo/internal/tomlfile"
)

type document struct {
	Name  string
	Limit struct {
		Memory quantity.Size
		Wall   quantity.Duration
	}
	Rule []struct{ Name string }
	Free map[string]any
}

func TestDecodeTellsTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"name = 'a'\nnaem = 'b'\n":               "f:2: naem: there is no such key",
		"name = 'a'\n[limit]\n\nmemory = '1X'\n": `f:4: limit.memory: size "1X": want a number above zero with an optional unit K, M, G or T, such as 64M: invalid argument`,
		"[limit]\nwall = '-1s'":                  `f:2: limit.wall: time "-1s": want one above zero, such as 2s or 500ms: invalid argument`,
		"name = 1":                               "f:1: name: cannot decode TOML integer into struct field tomlfile_test.document.Name of type string",
		"name = 'a'\nname = 'b'":                 "f:2: name: key name is already defined",
	} {
		var d document
		_, err := tomlfile.Decode("f", []byte(text), &d)
		if err == nil || err.Error() != want || !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestErrorfFindsTheLine(t *testing.T) {
	var d document
	f, err := tomlfile.Decode("f", []byte("name = 'a'\n[[rule]]\nname = 'x'\n[[rule]]\nname = 'y'\n[limit]\nmemory = '64M'\n[free]\na = [1, {\n b = 2}]\n"), &d)
	if err != nil || d.Limit.Memory != 64<<20 {
		t.Fatal(err, d)
	}
	for key, want := range map[string]string{
		"rule.1.name": "f:5: rule.1.name: bad", "rule.0": "f:2: rule.0: bad", "rule.1.tier": "f:4: rule.1.tier: bad",
		"limit.memory": "f:7: limit.memory: bad", "free.a.1.b": "f:10: free.a.1.b: bad", "other": "f: other: bad",
	} {
		if got := f.Errorf(key, "bad").Error(); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("name = 'a'\n[[rule]]\nname = 'x'\n[free]\na = [1, {b.c = 2}]\n'q r'.s = 1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d document
		if _, err := tomlfile.Decode("f", data, &d); err != nil && !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%v", err)
		}
	})
}
