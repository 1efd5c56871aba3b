package testprog

import (
	"os"
	"testing"
)

// NewerQEMU returns a QEMU of version 8 or newer, which scripts/qemu.sh finds. Where
// there is none the test is skipped, or fails where AXO_REQUIRE is set.
func NewerQEMU(t testing.TB) string {
	t.Helper()
	path, err := script("qemu")
	if err != nil && os.Getenv("AXO_REQUIRE") != "" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip("SKIPPED: " + err.Error())
	}
	return path
}
