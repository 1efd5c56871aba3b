//go:build linux

package guest

import (
	"testing"

	"github.com/axocoatl/isolation/guest/wire"
)

// TestFits: a program becomes an interpreter that was started with the environment
// that it would have been started with itself, as far as interpreters look.
func TestFits(t *testing.T) {
	image := []string{"PATH=/usr/local/bin:/bin", "LANG=C.UTF-8", "PYTHON_VERSION=3.12.1", "GPG_KEY=0"}
	for name, c := range map[string]struct {
		ahead, env []string
		want       bool
	}{
		"nothing":           {nil, []string{"A=1", "HOME=/"}, true},
		"the image's":       {image, append([]string{"A=1"}, image...), true},
		"another order":     {image, []string{"PYTHON_VERSION=3.12.1", "LANG=C.UTF-8"}, true},
		"one more":          {image, append([]string{"PYTHONHASHSEED=0"}, image...), false},
		"one less":          {image, image[:2], false},
		"another value":     {image, []string{"PYTHON_VERSION=3.12.1", "LANG=de_DE.UTF-8"}, false},
		"twice":             {image, append([]string{"LANG=C"}, image...), false},
		"none was expected": {nil, []string{"LC_ALL=C"}, false},
	} {
		p := &prepared{file: "/usr/bin/python3", env: looked(c.ahead)}
		m := &wire.SpawnMessage{Args: []string{"python3", "-c", "pass"}, Env: c.env}
		if got := p.fits(m, p.file); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
