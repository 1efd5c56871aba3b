package testprog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// ErrNoCompiler is the error of a build whose compiler is not installed.
var ErrNoCompiler = errors.New("compiler is not installed")

// Go returns the path of a Go program compiled for wasip1.
func Go(t testing.TB, name string) string { t.Helper(); return need(t, BuildGo, name) }

// GoNative returns the path of the same program compiled for this host.
func GoNative(t testing.TB, name string) string { t.Helper(); return need(t, BuildGoNative, name) }

// C returns the path of a C program compiled by clang for wasm32-wasi.
func C(t testing.TB, name string) string { t.Helper(); return need(t, BuildC, name) }

// Rust returns the path of a Rust program compiled for WASI preview 1.
func Rust(t testing.TB, name string) string { t.Helper(); return need(t, BuildRust, name) }

// RustComponent returns the path of the same program as a component of WASI
// preview 2: as the compiler makes it, or, where that lacks the target, of the module.
func RustComponent(t testing.TB, name string) string {
	t.Helper()
	path, err := BuildRustComponent(name)
	if errors.Is(err, ErrNoCompiler) {
		t.Logf("made of the module: %v", err)
		return Component(t, Rust(t, name))
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// CNative returns the path of the same program compiled by gcc -O2.
func CNative(t testing.TB, name string) string { t.Helper(); return need(t, BuildCNative, name) }

// Wat returns the path of a module that this package assembles; see Modules.
func Wat(t testing.TB, name string) string { t.Helper(); return need(t, BuildWat, name) }

// WatBytes returns a module that this package assembles; see Modules.
func WatBytes(t testing.TB, name string) []byte {
	t.Helper()
	b, err := Module(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Zeros returns the path of a sparse file of n zero bytes, in the test's own
// directory.
func Zeros(t testing.TB, n int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "zeros.wasm")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
	return name
}

// Worker builds axo-wasm and returns its path.
func Worker(t testing.TB) string { t.Helper(); return command(t, "axo-wasm") }

// Guest builds axo-guest and returns its path.
func Guest(t testing.TB) string { t.Helper(); return command(t, "axo-guest") }

// Root skips a test of what only root can do, or look at; where the tests are
// required it fails, since CI is root.
func Root(t testing.TB, why string) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("AXO_REQUIRE") != "":
		t.Fatalf("takes root: %s", why)
	default:
		t.Skipf("SKIPPED, NOT PROVED: takes root: %s", why)
	}
}

func command(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := BuildCommands(dir, []string{name}); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func need(t testing.TB, build func(string) (string, error), name string) string {
	t.Helper()
	path, err := build(name)
	if errors.Is(err, ErrNoCompiler) && os.Getenv("AXO_REQUIRE") == "" {
		t.Skipf("SKIPPED, a tool is missing: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
