package testprog

import (
	"bytes"
	"errors"
	"fmt"

	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// missing is the status by which a script says that a tool is not there.
const missing = 3

// BuildPython returns the path of CPython compiled to a WASI command. The npm
// package that it is from lies beside it as python.tgz.
var BuildPython = sync.OnceValues(func() (string, error) { return interpreter("python") })

// BuildQuickJS returns the path of QuickJS compiled to a WASI command.
var BuildQuickJS = sync.OnceValues(func() (string, error) { return interpreter("quickjs") })

func interpreter(name string) (string, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("the source of this package is not known")
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "..", "..", "scripts", "interpreters.sh"), name)
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == missing:
		return "", fmt.Errorf("%s: %w: %s", name, ErrNoCompiler, bytes.TrimSpace(says.Bytes()))
	case err != nil:
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, says.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}

// Python returns the path of CPython compiled to a WASI command.
func Python(t testing.TB) string {
	t.Helper()
	return need(t, func(string) (string, error) { return BuildPython() }, "")
}

// QuickJS returns the path of QuickJS compiled to a WASI command.
func QuickJS(t testing.TB) string {
	t.Helper()
	return need(t, func(string) (string, error) { return BuildQuickJS() }, "")
}
