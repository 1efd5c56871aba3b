package testprog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// FindRuntime returns the path of an OCI runtime, which scripts/runtimes.sh finds
// or builds. ErrNoCompiler: it is not there, and cannot be built here.
func FindRuntime(name string) (string, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("the source of this package is not known")
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "..", "..", "scripts", "runtimes.sh"), name)
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == noTool:
		return "", fmt.Errorf("%s: %w: %s", name, ErrNoCompiler, bytes.TrimSpace(says.Bytes()))
	case err != nil:
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, says.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}

// Runtime returns the path of an OCI runtime. Where it is missing the test is
// skipped, or fails under AXO_REQUIRE.
func Runtime(t testing.TB, name string) string {
	t.Helper()
	path, err := FindRuntime(name)
	if errors.Is(err, ErrNoCompiler) && os.Getenv("AXO_REQUIRE") == "" {
		t.Skipf("SKIPPED, a runtime is missing: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
