// Package guest is what runs inside a container as its first process: it makes
// the container around itself from a plan, starts programs for the host, and
// tells how they ended. Programs run in a pid namespace of their own below it, so
// that they can neither see nor signal it, without capabilities and under a
// seccomp filter.
package guest
