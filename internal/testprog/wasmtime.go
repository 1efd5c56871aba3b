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
	"sync"
	"testing"
)

// noTool is the status by which a script says that it lacks a tool.
const noTool = 3

// BuildWasmtime returns the path of the wasmtime worker: one that is named by
// AXO_WASMTIME_WORKER_PATH, as axo takes it, or one that is built now.
var BuildWasmtime = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("AXO_WASMTIME_WORKER_PATH"); path != "" {
		return path, nil
	}
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("the source of this package is not known")
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "..", "..", "scripts", "wasmtime.sh"))
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == noTool:
		return "", fmt.Errorf("cargo: %w: %s", ErrNoCompiler, bytes.TrimSpace(says.Bytes()))
	case err != nil:
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, says.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
})

// Wasmtime returns the path of the wasmtime worker.
func Wasmtime(t testing.TB) string {
	t.Helper()
	path, err := BuildWasmtime()
	if errors.Is(err, ErrNoCompiler) && os.Getenv("AXO_REQUIRE") == "" {
		t.Skipf("SKIPPED, a tool is missing: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
