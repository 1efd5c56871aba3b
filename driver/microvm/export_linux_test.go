package microvm

import "time"

// StandIn makes a configuration one of the engine firecracker with a program that
// takes Firecracker's place, and finds these paths of the host.
func StandIn(c Config, program string, paths ...string) Config {
	c.Engine, c.Firecracker, c.standIn = Firecracker, program, paths
	return c
}

// Patient waits so long for a machine to show that KVM works.
func Patient(c Config, d time.Duration) Config {
	c.kvmPatience = d
	return c
}
