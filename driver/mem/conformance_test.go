package mem_test

import (
	"io"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/drivertest"
)

func config(c mem.Config) drivertest.Config {
	c.Host = mem.NewHost()
	dc := drivertest.Config{
		New: func(testing.TB) isolation.Driver { return mem.New(c) },
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			return isolation.Spec{Requirement: isolation.Arbitrary, Language: "mem"},
				isolation.ProcessSpec{Args: append([]string{string(p)}, args...)}, true
		},
		Lose: func(t testing.TB, d isolation.Driver, sb isolation.Sandbox, _ isolation.Process) {
			if !d.(*mem.Driver).Lose(sb.ID(), "the test lost it") {
				t.Errorf("there is no sandbox %s", sb.ID())
			}
		},
	}
	dc.Host = func(_ testing.TB, st drivertest.Story) (stdout, stderr io.Reader, kill func()) {
		d := mem.New(c)
		return drivertest.HostHere(d, dc, st, d.Crash)
	}
	return dc
}

func TestConformance(t *testing.T) { drivertest.Run(t, config(mem.Config{})) }

// TestConformanceWithout has a driver that lacks nearly everything: the suite
// then checks that it refuses.
func TestConformanceWithout(t *testing.T) {
	c := config(mem.Config{Name: "poor", Features: func(f *isolation.Features) {
		f.Tier = isolation.TierWASM
		f.Runs = []isolation.Requirement{isolation.Arbitrary}
		f.Enforces = []isolation.Enforcement{
			{Limit: isolation.LimitWall, Enforced: true, By: "timer"},
			{Limit: isolation.LimitPids, Reason: "no cgroups"},
		}
		f.Options, f.Abilities = nil, nil
	}})
	c.Lose = nil
	c.Large = 4 << 20
	drivertest.Run(t, c)
}

func BenchmarkDriver(b *testing.B) { drivertest.Benchmark(b, config(mem.Config{})) }
