package testprog

import "testing"

// MCP returns the path of a program that the tests of MCP use, as
// scripts/mcp-programs.sh has them: inspector, conformance, everything, uvx. All but
// uvx are run by node.
func MCP(t testing.TB, name string) string {
	t.Helper()
	return need(t, func(name string) (string, error) { return script("mcp-programs", name) }, name)
}
