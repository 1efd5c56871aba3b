package microvm_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/drivertest"
)

func command(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
	return isolation.Spec{Requirement: isolation.Arbitrary},
		isolation.ProcessSpec{Args: append([]string{"/opt/suite/testprogram", string(p)}, args...)}, true
}

// loseMachine ends what carries a process: QEMU.
func loseMachine(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
	if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestConformance holds an emulated machine to what every driver does. It has
// more patience, and less to move.
func TestConformance(t *testing.T) {
	c := config(t)
	drivertest.Run(t, drivertest.Config{
		New:     func(t testing.TB) isolation.Driver { return newDriver(t, c) },
		Command: command, Lose: loseMachine, Leftovers: leftovers, Patience: 90 * time.Second, Large: 4 << 20, Parallel: 4,
	})
}

func BenchmarkEmulated(b *testing.B) {
	c := config(b)
	drivertest.Benchmark(b, drivertest.Config{
		New:     func(t testing.TB) isolation.Driver { return newDriver(t, c) },
		Command: command, Patience: 90 * time.Second,
	})
}
