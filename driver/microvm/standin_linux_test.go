package microvm_test

import (
	"os"
	"os/exec"
	"testing"
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
	for _, run := range []string{"^(TestGuest|TestClonesDiffer|TestLost|TestTemplateIsChecked)$", "^TestConformance$/^(probe|lifecycle|exec)$"} {
		c := exec.CommandContext(t.Context(), self, "-test.run="+run, "-test.count=1")
		c.Env = append(os.Environ(), "AXO_TEST_VMM="+standIn)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", run, err, out)
		}
	}
}
