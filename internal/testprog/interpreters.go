package testprog

import (
	"sync"
	"testing"
)

// BuildPython returns the path of CPython compiled to a WASI command. The npm
// package that it is from lies beside it as python.tgz.
var BuildPython = sync.OnceValues(func() (string, error) { return script("interpreters", "python") })

// BuildQuickJS returns the path of QuickJS compiled to a WASI command.
var BuildQuickJS = sync.OnceValues(func() (string, error) { return script("interpreters", "quickjs") })

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
