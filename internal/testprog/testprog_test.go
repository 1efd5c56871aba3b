package testprog

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// bad are the modules that no validator takes. The others are valid, also those
// that no host can link.
var bad = []string{"component", "empty", "garbage", "invalid", "truncated", "version"}

func TestModulesAreAsSaid(t *testing.T) {
	validate, err := exec.LookPath("wasm-validate")
	if err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal("wasm-validate is missing: install wabt")
		}
		t.Skip("SKIPPED, a tool is missing: wasm-validate (package wabt)")
	}
	for _, n := range Modules() {
		t.Run(n, func(t *testing.T) {
			t.Parallel()
			out, err := exec.Command(validate, Wat(t, n)).CombinedOutput()
			if wantBad := slices.Contains(bad, n); (err != nil) != wantBad {
				t.Errorf("wasm-validate: %v, want an error: %v\n%.500s", err, wantBad, out)
			}
		})
	}
}

func TestSameProgramSameBytes(t *testing.T) {
	out := func(path string, args ...string) string {
		b, err := exec.Command(path, args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct{ name, arg string }{{"hello", ""}, {"sha256", "1"}, {"nbody", "1000"}} {
		if g, n := out(GoNative(t, c.name), c.arg), out(CNative(t, c.name), c.arg); g != n {
			t.Errorf("%s: Go printed %q, C %q", c.name, g, n)
		}
	}
}

func TestGoAndCBuildToWasm(t *testing.T) {
	for _, path := range []string{Go(t, "hello"), C(t, "hello")} {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(b, []byte("\x00asm\x01\x00\x00\x00")) {
			t.Errorf("%s: %v, begins with %x", path, err, b[:min(8, len(b))])
		}
	}
	if first, again := Go(t, "hello"), Go(t, "hello"); first != again {
		t.Errorf("built twice: %s and %s", first, again)
	}
}

func TestUnknownProgram(t *testing.T) {
	for _, build := range []func(string) (string, error){BuildGo, BuildGoNative, BuildC, BuildCNative, BuildWat} {
		if _, err := build("no-such"); err == nil || !strings.Contains(err.Error(), "no-such") {
			t.Errorf("error %v does not name the program", err)
		}
	}
}

func TestEveryGoProgramBuilds(t *testing.T) {
	dirs, err := filepath.Glob("testdata/go/*")
	if err != nil || len(dirs) < 15 {
		t.Fatalf("%d programs, %v", len(dirs), err)
	}
	for _, d := range dirs {
		build := BuildGo
		if filepath.Base(d) == "wreck" {
			build = BuildGoNative // it is of Linux
		}
		if _, err := build(filepath.Base(d)); err != nil {
			t.Error(err)
		}
	}
}
