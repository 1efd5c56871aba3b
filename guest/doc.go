// Package guest is what runs inside a container or a virtual machine as its first
// process: it makes the sandbox around itself from a plan, starts programs for
// the host, and tells how they ended. Programs run in a pid namespace of their
// own below it, so that they can neither see nor signal it, without capabilities
// and under a seccomp filter. In a virtual machine they are in a mount namespace
// of their own too, and the guest counts and bounds them by control groups.
//
// The protocol is package guest/wire, the plan package guest/plan.
package guest
