package main

import (
	"fmt"
	"slices"

	"github.com/axocoatl/isolation/test/inside"
)

// all are the tests of what uses control groups: the units, the conformance
// suites, limits, kills, crashes and leaks. Those that measure or hammer take
// minutes where everything is emulated, and have nothing to do with it.
var all = []inside.Job{
	{Name: "cgroup", Dir: "internal/cgroup"},
	{Name: "spawn", Dir: "internal/spawn", Run: "-test.skip=^TestStress$"},
	{Name: "journal", Dir: "internal/journal"},
	{Name: "none", Dir: "driver/none", Run: "-test.run=^(TestUnified|TestConformanceProcess|TestKilledHost|TestNested|TestLifeCycle|" +
		"TestCPULimitOfATree|TestOOM|TestForkBomb|TestUser)$ -test.skip=/hammer"},
	{Name: "oci", Dir: "driver/oci", Run: "-test.skip=WithoutCgroup|OrdinaryUser|GrantedUser|Prepared|Runtimes|/^(crun|runc|youki|runsc|hammer)$"},
	// Of the engines whose containers another program makes, what they could do
	// differently here; gVisor, and youki, would take minutes where all is emulated.
	{Name: "runtimes", Dir: "driver/oci", Run: "-test.run=^(TestConformanceRuntimes|TestView|TestLimits|TestSession)$/^(crun|runc)$/^(probe|lifecycle|exec|kill|limits)$"},
}

// programs are those that tests would build.
var programs = []string{"cmd/axo-guest", "drivertest/testprogram"}

func jobs(only, run string) ([]inside.Job, error) {
	if only == "" {
		return all, nil
	}
	i := slices.IndexFunc(all, func(j inside.Job) bool { return j.Name == only })
	if i < 0 {
		return nil, fmt.Errorf("no job %q", only)
	}
	j := all[i]
	if run != "" {
		j.Run += " -test.run=" + run
	}
	return []inside.Job{j}, nil
}
