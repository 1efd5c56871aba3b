package microvm_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/internal/testprog"
)

// TestNewerQEMU: machines are built, restored, captured and forked by QEMU of version 8
// or newer too, which has other firmware, at another place. It runs what TestFork does.
func TestNewerQEMU(t *testing.T) {
	if testVMM != "" {
		t.Skip("SKIPPED: AXO_TEST_VMM has this suite run on other machines; without it this runs")
	}
	config(t)
	c := unbuilt()
	c.QEMU, c.Templates = testprog.NewerQEMU(t), t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	b := builtFor
	b.Reuse = filepath.Join(unbuilt().Templates, microvm.DefaultTemplate, "disk")
	if _, err := microvm.Build(ctx, c, b); err != nil {
		t.Fatal(err)
	}
	forks(t, c)
}
