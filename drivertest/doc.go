// Package drivertest is the conformance suite of isolation.Driver: what it
// checks is what callers may rely on, for every tier and everything that wraps
// or carries one (pool, remote client).
//
// A driver's test says how to make the driver and how to run a few abstract
// programs, and calls [Run]:
//
//	func TestConformance(t *testing.T) {
//		drivertest.Run(t, drivertest.Config{
//			New: func(t testing.TB) isolation.Driver { return newDriver(t) },
//			Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
//				return isolation.Spec{Requirement: isolation.Arbitrary},
//					isolation.ProcessSpec{Args: append([]string{"/bin/testprogram", string(p)}, args...)}, true
//			},
//		})
//	}
//
// What is checked follows from Features: a limit that is told as enforced is
// run into, one that is not must be refused, an ability that is told must be
// found and work, one that is not must not be found. A program that a tier can't
// have is skipped, which the log says; a limit that is enforced and that no
// program can show is a failure.
//
// No check is a race against the clock: times are bounds that only a hang
// exceeds (Config.Patience).
package drivertest
