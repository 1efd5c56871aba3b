// Command standin takes Firecracker's place in tests, where there is no KVM. It
// has Firecracker's command line and the part of its API that this module uses,
// and is as strict: a field that it does not know, a call at another time than
// Firecracker takes it, or a body that is too long is refused in the same words.
// Behind it is a real machine: QEMU emulates it, from the same kernel, guest, disk
// and memory, and its serial port is found behind Firecracker's vsock socket.
//
// What it does not show: Firecracker's devices, its speed, its own filters. `make
// test-firecracker` runs the tests on Firecracker itself.
package main
