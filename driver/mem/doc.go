// Package mem is a Driver in memory: its programs are Go functions, its limits
// are simulated. It isolates nothing and is for tests: those of everything that
// stands above the contract (engine, pool, servers, clients), and those of the
// conformance suite itself, which it passes.
//
// A program is a [Program], found by Args[0]; [Builtin] lists those that are
// always there. It acts through its [Proc]: what it writes goes through bounded
// pipes, what it declares to use (Alloc, Compute, Step) counts against limits,
// and any call ends the program once the host side ended it.
//
// Detached sandboxes live on a [Host], which drivers may share: what one leaves
// another recovers.
//
// [Driver.SetFaults] makes calls fail or block, [Driver.Lose] kills what
// carries a sandbox, [Driver.Crash] ends the driver as a killed process would,
// [Driver.Live] tells what is left.
package mem
