package oci_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/internal/testprog"
)

// hostedBy configures an engine whose containers a runtime makes, which is
// skipped where it is not there.
func hostedBy(t testing.TB, name string) oci.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: takes root")
	}
	return oci.Config{Engine: name, Runtime: testprog.Runtime(t, name), StateDir: t.TempDir()}
}

// eachEngine runs a test on the builtin engine and on each that is another
// program.
func eachEngine(t *testing.T, test func(t *testing.T, c oci.Config)) {
	t.Helper()
	t.Run("builtin", func(t *testing.T) { test(t, oci.Config{}) })
	for _, name := range oci.Runtimes() {
		t.Run(name, func(t *testing.T) { test(t, hostedBy(t, name)) })
	}
}

func TestConformanceRuntimes(t *testing.T) {
	for _, name := range oci.Runtimes() {
		t.Run(name, func(t *testing.T) {
			c := config(detached(t, hostedBy(t, name)))
			if name == "runsc" {
				// It asks the host for more at once than a program asked it for.
				command := c.Command
				c.Command = func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
					spec, process, ok := command(p, args...)
					return spec, process, ok && p != drivertest.ReadOften
				}
				// Its programs are none of the host: one process carries them all.
				c.Lose = func(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
					if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
				}
			}
			drivertest.Run(t, c)
		})
	}
}
