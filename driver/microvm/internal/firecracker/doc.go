// Package firecracker starts and stops Firecracker virtual machines and talks to
// Firecracker by its API, HTTP on a unix socket (src/firecracker/swagger/firecracker.yaml
// in its repository).
//
// The API takes no field that it does not know, and each call at its time only:
//
//	a machine that boots     PUT machine-config, boot-source, drives, vsock, entropy; PUT actions
//	a snapshot               PATCH vm (Paused), PUT snapshot/create
//	one that is restored     PUT snapshot/load, before anything else
//
// A snapshot names files and its vsock's socket by paths. They are
// /proc/self/fd/N and a name in the directory where Firecracker is started: the
// same for all machines, and in each of them its own.
//
// Firecracker is not trusted: what it answers is bounded, and what it makes in
// its directory is not followed.
package firecracker
