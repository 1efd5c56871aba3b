package testprog

import (
	"sync"
	"testing"
)

var buildInspector = sync.OnceValues(func() (string, error) { return script("inspector", "") })

// Inspector returns the command line of the MCP inspector.
func Inspector(t testing.TB) []string {
	t.Helper()
	return []string{"node", need(t, func(string) (string, error) { return buildInspector() }, "")}
}
