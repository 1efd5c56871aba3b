package testprog

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

//go:embed testdata
var sources embed.FS

// BuildGo compiles testdata/go/NAME for wasip1 and returns the path.
func BuildGo(name string) (string, error) {
	return buildGo(name, ".wasm", "GOOS=wasip1", "GOARCH=wasm", "GOWASM=", "CGO_ENABLED=0")
}

// BuildGoNative compiles testdata/go/NAME for this host, static.
func BuildGoNative(name string) (string, error) {
	if built := os.Getenv("AXO_TEST_PROGRAMS"); built != "" {
		return filepath.Join(built, name), nil
	}
	return buildGo(name, "", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH, "CGO_ENABLED=0")
}

// BuildC compiles testdata/c/NAME.c with clang for wasm32-wasi.
func BuildC(name string) (string, error) {
	cc, err := compiler("clang-14", "clang")
	if err != nil {
		return "", err
	}
	return buildC(name, ".wasm", cc, "--target=wasm32-wasi", "-O2", "-s")
}

// BuildRust compiles testdata/rust/NAME.rs for WASI preview 1.
func BuildRust(name string) (string, error) { return buildRust(name, "wasm32-wasip1") }

// BuildRustComponent compiles it for preview 2: what comes out is a component.
func BuildRustComponent(name string) (string, error) { return buildRust(name, "wasm32-wasip2") }

// rustCompilers are the commands that scripts/rust-wasi.sh finds, by target.
var rustCompilers = map[string]func() (string, error){
	"wasm32-wasip1": sync.OnceValues(func() (string, error) { return script("rust-wasi", "wasm32-wasip1") }),
	"wasm32-wasip2": sync.OnceValues(func() (string, error) { return script("rust-wasi", "wasm32-wasip2") }),
}

func buildRust(name, target string) (string, error) {
	command, err := rustCompilers[target]()
	if err != nil {
		return "", err
	}
	src, err := fs.ReadFile(sources, path.Join("testdata/rust", name+".rs"))
	if err != nil {
		return "", fmt.Errorf("test program %q: %w", name, err)
	}
	return cached(name+"."+target+".wasm", fmt.Appendf(nil, "%s %s", command, src), func(out string) error {
		main := filepath.Join(filepath.Dir(out), "main.rs")
		if err := os.WriteFile(main, src, 0o600); err != nil {
			return err
		}
		f := append(strings.Fields(command), "--edition", "2021", "-O", "-C", "strip=symbols", "-o", out, filepath.Base(main))
		cmd := exec.Command(f[0], f[1:]...)
		cmd.Dir = filepath.Dir(main) // its panics tell the path as it is here
		return run(cmd)
	})
}

// BuildCNative compiles testdata/c/NAME.c with gcc for this host.
func BuildCNative(name string) (string, error) {
	cc, err := compiler("gcc", "cc")
	if err != nil {
		return "", err
	}
	return buildC(name, "", cc, "-O2")
}

// BuildWat writes a module of Modules to the cache and returns the path.
func BuildWat(name string) (string, error) {
	b, err := Module(name)
	if err != nil {
		return "", err
	}
	return cached(name+".wasm", b, func(out string) error { return os.WriteFile(out, b, 0o600) })
}

func buildGo(name, suffix string, env ...string) (string, error) {
	goTool, err := compiler("go")
	if err != nil {
		return "", err
	}
	src, err := fs.ReadFile(sources, path.Join("testdata/go", name, "main.go"))
	if err != nil {
		return "", fmt.Errorf("test program %q: %w", name, err)
	}
	env = append(env, "GO111MODULE=off", "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local")
	key := fmt.Appendf(nil, "%s %s %q %s", goTool, runtime.Version(), env, src)
	return cached(name+suffix, key, func(out string) error {
		main := filepath.Join(filepath.Dir(out), "main.go")
		if err := os.WriteFile(main, src, 0o600); err != nil {
			return err
		}
		cmd := exec.Command(goTool, "build", "-trimpath", "-ldflags", "-s -w", "-o", out, main)
		cmd.Dir = filepath.Dir(out)
		cmd.Env = append(os.Environ(), env...)
		return run(cmd)
	})
}

func buildC(name, suffix, cc string, flags ...string) (string, error) {
	src, err := fs.ReadFile(sources, path.Join("testdata/c", name+".c"))
	if err != nil {
		return "", fmt.Errorf("test program %q: %w", name, err)
	}
	key := fmt.Appendf(nil, "%s %q %s", cc, flags, src)
	return cached(name+suffix, key, func(out string) error {
		main := filepath.Join(filepath.Dir(out), "main.c")
		if err := os.WriteFile(main, src, 0o600); err != nil {
			return err
		}
		args := append(append([]string(nil), flags...), "-o", out, main, "-lm")
		err := run(exec.Command(cc, args...))
		if err != nil && suffix == ".wasm" && missingSDK(err) {
			return fmt.Errorf("%w: clang has no WASI library (packages wasi-libc, lld-14, libclang-rt-14-dev-wasm32): %v", ErrNoCompiler, err)
		}
		return err
	})
}

func missingSDK(err error) bool {
	for _, s := range []string{"file not found", "wasm-ld", "cannot open", "unable to execute"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

// BuildCommands builds commands of this repository, as their releases are, into
// dir, with build tags.
func BuildCommands(dir string, names []string, tags ...string) error {
	for _, n := range names {
		out := filepath.Join(dir, n)
		if runtime.GOOS == "windows" {
			out += ".exe"
		}
		from := "cmd/" + n
		if n == "axo" {
			from = n // it is a module of its own
		}
		if err := BuildPackage(out, from, tags...); err != nil {
			return err
		}
	}
	return nil
}

// BuildPackage builds a program of this repository, named by its directory. Where
// there is no toolchain, AXO_TEST_PROGRAMS names a directory with programs that
// were built without tags.
func BuildPackage(out, dir string, tags ...string) error {
	if built := os.Getenv("AXO_TEST_PROGRAMS"); built != "" && len(tags) == 0 {
		b, err := os.ReadFile(filepath.Join(built, path.Base(dir)))
		if err != nil {
			return err
		}
		return os.WriteFile(out, b, 0o755)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", strings.Join(tags, ","), "-o", out, "github.com/axocoatl/isolation/"+dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return run(cmd)
}

func compiler(names ...string) (string, error) {
	for _, n := range names {
		if p, err := exec.LookPath(n); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", strings.Join(names, " or "), ErrNoCompiler)
}

func run(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out.Bytes())
	}
	return nil
}

// building holds one *sync.Mutex for each output, so that tests in parallel
// make a program once. Several processes may make it at the same time; the
// last rename wins and all are equal.
var building sync.Map

// cached returns the path of the file that build makes, making it if the cache
// has none for this name and key.
func cached(name string, key []byte, build func(out string) error) (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(name+"\x00"), key...))
	final := filepath.Join(dir, hex.EncodeToString(sum[:8]), name)
	mu, _ := building.LoadOrStore(final, new(sync.Mutex))
	mu.(*sync.Mutex).Lock()
	defer mu.(*sync.Mutex).Unlock()
	if fi, err := os.Stat(final); err == nil && fi.Mode().IsRegular() {
		return final, nil
	}
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, name)
	if err := build(out); err != nil {
		return "", fmt.Errorf("build test program %s: %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o700); err != nil {
		return "", err
	}
	return final, os.Rename(out, final)
}

// cacheDir is in the user's cache directory, or, for a user without one, in a
// temporary directory of this process.
var cacheDir = sync.OnceValues(func() (string, error) {
	base, err := os.UserCacheDir()
	if err == nil {
		dir := filepath.Join(base, "axo-testprog")
		if err = os.MkdirAll(dir, 0o700); err == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp("", "axo-testprog-")
})
