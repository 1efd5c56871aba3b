package microvm_test

import (
	"encoding/json"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
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

// hostEnv is where the driver of a process that plays a story has its files.
const hostEnv = "AXO_MICROVM_TEST_HOST"

func playHost() {
	text, ok := os.LookupEnv(hostEnv)
	if !ok {
		return
	}
	var c microvm.Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	drivertest.PlayHost(drivertest.Config{Command: command}, func() (isolation.Driver, error) { return microvm.New(c) })
}

// sessions is the configuration of a driver whose sandboxes may outlive it, and how
// another process has one such.
func sessions(t testing.TB, c microvm.Config) (microvm.Config, func(t testing.TB, st drivertest.Story) (stdout, stderr io.Reader, kill func())) {
	c.SessionDir = filepath.Join(t.TempDir(), "sessions")
	b, err := json.Marshal(map[string]string{"Engine": c.Engine, "Templates": c.Templates, "RunDir": c.RunDir, "SessionDir": c.SessionDir})
	if err != nil {
		t.Fatal(err)
	}
	return c, func(t testing.TB, st drivertest.Story) (stdout, stderr io.Reader, kill func()) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), hostEnv+"="+string(b))
		return drivertest.HostProcess(t, cmd, st)
	}
}

// TestConformance holds an emulated machine to what every driver does. It has
// more patience, and less to move.
func TestConformance(t *testing.T) {
	c := config(t)
	if flag.Lookup("test.run").Value.String() == "" && testVMM == "" { // all tests run
		startStandIn(t)
	}
	dc := drivertest.Config{
		Command: command, Lose: loseMachine, Leftovers: leftovers, Patience: 90 * time.Second, Large: 4 << 20, Parallel: 4,
	}
	if c.Engine == "" {
		c, dc.Host = sessions(t, c)
	}
	dc.New = func(t testing.TB) isolation.Driver { return newDriver(t, c) }
	drivertest.Run(t, dc)
}

func BenchmarkEmulated(b *testing.B) {
	c := config(b)
	drivertest.Benchmark(b, drivertest.Config{
		New:     func(t testing.TB) isolation.Driver { return newDriver(t, c) },
		Command: command, Patience: 90 * time.Second,
	})
}

// BenchmarkBoot compares a boot, which templates alone see, with one of the same
// QEMU by hand.
func BenchmarkBoot(b *testing.B) {
	c := config(b)
	bc := builtFor
	bc.Reuse = filepath.Join(c.Templates, microvm.DefaultTemplate, "disk")
	var ours, bare []time.Duration
	for b.Loop() {
		x, y, err := microvm.Boots(b.Context(), c, bc)
		if err != nil {
			b.Fatal(err)
		}
		ours, bare = append(ours, x), append(bare, y)
	}
	slices.Sort(ours)
	slices.Sort(bare)
	at := len(ours) / 2
	b.ReportMetric(float64(ours[at].Milliseconds()), "boot-ms")
	b.ReportMetric(float64(bare[at].Milliseconds()), "bare-ms")
	b.ReportMetric(float64(ours[at])/float64(bare[at]), "times-bare")
}
