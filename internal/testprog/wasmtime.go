package testprog

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// BuildWasmtime returns the path of the wasmtime worker: one that is named by
// AXO_WASMTIME_WORKER_PATH, as axo takes it, or one that is built now.
var BuildWasmtime = sync.OnceValues(func() (string, error) {
	if named := os.Getenv("AXO_WASMTIME_WORKER_PATH"); named != "" {
		return named, nil
	}
	return script("wasmtime", "build")
})

var buildComponentize = sync.OnceValues(func() (string, error) { return script("wasmtime", "componentize") })

// Component returns the path of a WASI preview 2 command component, made of the
// WASI preview 1 module at a path.
func Component(t testing.TB, module string) string { t.Helper(); return need(t, componentize, module) }

// ComponentWat returns the path of the component in testdata/component/NAME.wat.
func ComponentWat(t testing.TB, name string) string {
	t.Helper()
	return need(t, func(name string) (string, error) {
		text, err := sources.ReadFile(path.Join("testdata/component", name+".wat"))
		if err != nil {
			return "", fmt.Errorf("test program %q: %w", name, err)
		}
		dir := t.TempDir()
		from := filepath.Join(dir, name+".wat")
		if err := os.WriteFile(from, text, 0o600); err != nil {
			return "", err
		}
		return componentize(from)
	}, name)
}

// componentize makes a component of a module, or of the text of one.
func componentize(from string) (string, error) {
	tool, err := buildComponentize()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return "", err
	}
	name := strings.TrimSuffix(filepath.Base(from), filepath.Ext(from)) + ".component.wasm"
	// The path of the tool has the versions that it is made of.
	return cached(name, fmt.Appendf(nil, "%s %s", tool, b), func(out string) error {
		return run(exec.Command(tool, from, out))
	})
}

// WasmtimeChecks runs a module on wasmtime with nothing that could interrupt it, with
// fuel, and with epochs, a number of rounds, and returns the median CPU time of
// each in nanoseconds.
func WasmtimeChecks(t testing.TB, module string, rounds int, args ...string) map[string]float64 {
	t.Helper()
	out := need(t, func(string) (string, error) {
		return script("wasmtime", append([]string{"checks", module, strconv.Itoa(rounds)}, args...)...)
	}, module)
	took := map[string]float64{}
	for line := range strings.Lines(out) {
		name, ns, _ := strings.Cut(strings.TrimSpace(line), " ")
		var err error
		if took[name], err = strconv.ParseFloat(ns, 64); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return took
}

// Wasmtime returns the path of the wasmtime worker.
func Wasmtime(t testing.TB) string {
	t.Helper()
	return need(t, func(string) (string, error) { return BuildWasmtime() }, "")
}
