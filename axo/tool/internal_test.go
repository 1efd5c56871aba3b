package tool

import (
	"slices"
	"testing"
)

func TestArguments(t *testing.T) {
	var tl Tool
	tl.Manifest.Convention = ConventionArgs
	tl.Manifest.Entrypoint.Args = []any{"{a}", []any{"--n", "{n}"}, "x={{{a}}}"}
	got, err := tl.arguments(map[string]any{"a": "$(reboot) 'q'", "n": 1.5})
	if want := []string{"$(reboot) 'q'", "--n", "1.5", "x={$(reboot) 'q'}"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q %v", got, err)
	}
	if got, err = tl.arguments(map[string]any{"a": "{n}"}); err != nil || !slices.Equal(got, []string{"{n}", "x={{n}}"}) {
		t.Errorf("without n: %q %v", got, err)
	}
	if _, err := tl.arguments(map[string]any{"n": 1}); err == nil {
		t.Error("a is missing, and nobody says so")
	}
	for _, bad := range []string{"{", "}", "{a"} {
		if _, _, err := expand(bad, nil); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzProgress(f *testing.F) {
	f.Add([]byte("log\n{\"progress\":1,\"total\":2,\"message\":\"m\"}\n{\"progress\":null}\n{"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		var whole, parts []Progress
		w := &progress{tell: func(p Progress) { whole = append(whole, p) }}
		_, _ = w.Write(b)
		p := &progress{tell: func(p Progress) { parts = append(parts, p) }}
		cut = min(max(cut, 0), len(b))
		_, _ = p.Write(b[:cut])
		_, _ = p.Write(b[cut:])
		if len(p.line) > maxProgress || !slices.Equal(whole, parts) {
			t.Errorf("%v, and in parts %v", whole, parts)
		}
	})
}
