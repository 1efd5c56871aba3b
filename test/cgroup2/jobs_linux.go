package main

import (
	"fmt"
	"slices"
)

// job is a test program.
type job struct {
	name string // of the program and its directory in the machine
	dir  string // of its package
	run  string // flags that choose its tests; "": all
}

// all are the tests of what uses control groups: the units, the conformance
// suites, limits, kills, crashes and leaks. Those that measure or hammer take
// minutes where everything is emulated, and have nothing to do with it.
var all = []job{
	{name: "cgroup", dir: "internal/cgroup"},
	{name: "spawn", dir: "internal/spawn", run: "-test.skip=^TestStress$"},
	{name: "journal", dir: "internal/journal"},
	{name: "none", dir: "driver/none", run: "-test.run=^(TestUnified|TestConformanceProcess|TestKilledHost|TestNested|TestLifeCycle|" +
		"TestCPULimitOfATree|TestOOM|TestForkBomb|TestUser)$ -test.skip=/hammer"},
	{name: "oci", dir: "driver/oci", run: "-test.skip=WithoutCgroup|OrdinaryUser|Prepared|Runtimes|/^(crun|runc|youki|runsc|hammer)$"},
}

// programs are those that tests would build.
var programs = []string{"cmd/axo-guest", "drivertest/testprogram"}

func (c *config) jobs() ([]job, error) {
	if c.only == "" {
		return all, nil
	}
	i := slices.IndexFunc(all, func(j job) bool { return j.name == c.only })
	if i < 0 {
		return nil, fmt.Errorf("no job %q", c.only)
	}
	j := all[i]
	if c.run != "" {
		j.run += " -test.run=" + c.run
	}
	return []job{j}, nil
}
