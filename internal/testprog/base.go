package testprog

import (
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// FindBase returns the directory of an image store with the image base.
var FindBase = sync.OnceValues(func() (string, error) { return script("base-image") })

// Base gives a state directory an image store that has the image base, a Debian. Where
// it cannot be made the test is skipped, or fails under AXO_REQUIRE.
func Base(t testing.TB, stateDir string) {
	t.Helper()
	dir := need(t, func(string) (string, error) { return FindBase() }, "")
	// Not by links: what has one more of them looks as if it had been changed.
	if out, err := exec.Command("cp", "-a", dir, filepath.Join(stateDir, "images")).CombinedOutput(); err != nil {
		t.Fatalf("copy the image base: %v: %s", err, out)
	}
}
