package testprog

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// FindRuntime returns the path of an OCI runtime, which scripts/runtimes.sh finds
// or builds; where there is no toolchain, one of PATH or of AXO_TEST_PROGRAMS.
// ErrNoCompiler: it is not there, and cannot be built here.
func FindRuntime(name string) (string, error) {
	built := os.Getenv("AXO_TEST_PROGRAMS")
	if built == "" {
		return script("runtimes", name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath(filepath.Join(built, name))
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoCompiler, err)
	}
	return path, nil
}

// Runtime returns the path of an OCI runtime. Where it is missing the test is
// skipped, or fails under AXO_REQUIRE.
func Runtime(t testing.TB, name string) string { t.Helper(); return need(t, FindRuntime, name) }
