package testprog

import (
	"sync"
	"testing"
)

// FindE2B returns the directory of E2B's SDKs: js has npm's, py PyPI's.
var FindE2B = sync.OnceValues(func() (string, error) { return script("e2b-clients") })

// E2B returns the directory of E2B's SDKs. Where they cannot be installed the test is
// skipped, or fails under AXO_REQUIRE.
func E2B(t testing.TB) string {
	t.Helper()
	return need(t, func(string) (string, error) { return FindE2B() }, "")
}
