// Package qemu starts and stops QEMU virtual machines of the type microvm, which
// has virtio devices and little else, and talks to QEMU by its machine protocol
// (QMP). All that a machine uses is passed as descriptors; QEMU opens nothing of
// the host but its own firmware.
//
// QEMU is not trusted: what it answers is bounded.
package qemu
