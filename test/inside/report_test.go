//go:build linux

package inside

import (
	"io"
	"strings"
	"testing"
)

// TestReport: only a machine that came to its end with all jobs well is a
// success.
func TestReport(t *testing.T) {
	const good = "axo-host 6.1, controllers: memory\naxo-start a\n=== RUN   TestX\n--- PASS: TestX (0.01s)\nPASS\naxo-exit a 0\naxo-done\n"
	jobs := []Job{{Name: "a"}}
	if err := report(io.Discard, "test", []byte(good), jobs); err != nil {
		t.Error(err)
	}
	for name, said := range map[string]string{
		"nothing":       "",
		"no end":        strings.Replace(good, "axo-done\n", "", 1),
		"failed":        strings.Replace(good, "axo-exit a 0", "axo-exit a 1", 1),
		"no exit":       strings.Replace(good, "axo-exit a 0\n", "", 1),
		"nothing ran":   strings.Replace(good, "--- PASS: TestX (0.01s)\n", "", 1),
		"another job":   strings.ReplaceAll(good, " a", " b"),
		"not set up":    good + "axo-failed mount\n",
		"only a prefix": strings.Replace(good, "axo-done", "axo-done or not", 1),
	} {
		if err := report(io.Discard, "test", []byte(said), jobs); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
