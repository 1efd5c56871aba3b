// Package microvm is tier 3: virtual machines, each with a kernel of its own.
// The engine "firecracker" is Firecracker, by hardware (KVM); "qemu" is QEMU's
// machine type microvm, by hardware or, where there is none and the caller agrees,
// emulated.
//
// # Templates
//
// A sandbox is not booted, it is restored: a [Template] is a machine that was
// booted once, warmed, and stopped. Its memory is in a file, which each driver
// reads once into memory that nobody can write any more; all machines map it and
// copy what they change. Before anything runs in one the host makes it unlike
// all others (SYNC in guest/wire/PROTOCOL.md).
//
// # What stands around a program
//
// The guest's own namespaces and limits (package guest), then the machine, then
// the VMM's jail: namespaces of its own for users, processes, mounts, network, IPC,
// host name and control groups, the user nobody, no capabilities, no_new_privs,
// QEMU's seccomp filter or a root of Firecracker's own, and a control group. An emulated machine is no boundary
// by QEMU's own policy (docs/system/security.rst): there the jail is what counts.
package microvm
