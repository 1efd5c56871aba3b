package microvm_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/internal/testprog"
)

// TestStandIn runs tests of this package again on the engine firecracker, with
// what takes Firecracker's place where there is no KVM (package standin): its API,
// in order and in form, snapshot and restore, the vsock handshake and all that
// comes after it, of machines that are real. AXO_TEST_VMM=standin runs all tests
// so.
func TestStandIn(t *testing.T) {
	if testVMM != "" {
		t.Skip("this is it")
	}
	config(t) // says what the host lacks
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []string{"^(TestGuest|TestDirs|TestClonesDiffer|TestLost|TestTemplateIsChecked)$", "^TestConformance$/^(probe|lifecycle|exec)$"} {
		c := exec.CommandContext(t.Context(), self, "-test.run="+run, "-test.count=1")
		c.Env = append(os.Environ(), "AXO_TEST_VMM="+standIn)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", run, err, out)
		}
	}
}

// TestHalfMade: a Firecracker that is none, and one that cannot start its machine,
// leave nothing.
func TestHalfMade(t *testing.T) {
	config(t)
	program := filepath.Join(t.TempDir(), standIn)
	if err := testprog.BuildPackage(program, "driver/microvm/internal/standin"); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := leftovers(t)
	for name, change := range map[string]func(c *microvm.Config, b *microvm.BuildConfig) error{
		"none": func(c *microvm.Config, _ *microvm.BuildConfig) error {
			c.Firecracker = "/bin/true"
			return isolation.ErrFailedPrecondition
		},
		"no kernel": func(_ *microvm.Config, b *microvm.BuildConfig) error { b.Kernel = kernel; return nil },
	} {
		c := microvm.StandIn(unbuilt(), program, standInPaths...)
		c.Templates = t.TempDir()
		b := builtFor
		b.Accel = ""
		want := change(&c, &b)
		_, err := microvm.Build(t.Context(), c, b)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if entries, err := os.ReadDir(c.Templates); err != nil || len(entries) != 1 { // the lock
			t.Errorf("%s: %v, %v", name, entries, err)
		}
		if after := leftovers(t); !slices.Equal(before, after) {
			t.Errorf("%s: %q is there, %q was", name, after, before)
		}
	}
}
