// Package oci is tier 2: containers. The engine "builtin" makes them itself,
// from the host's own system directories, without an image or another
// program: namespaces for users, processes, mounts, network, IPC, host name and
// control groups, a read-only root, no capabilities, no_new_privs, a seccomp
// filter, and control groups for the limits.
//
// # How a container is made
//
// The host makes what takes its rights: the control groups, the range of user
// ids, mounts of its directories as descriptors. It starts the guest
// (package guest) as the first process of new namespaces and hands it a
// plan. The guest makes the rest around itself and says HELLO. Programs are
// started by the guest, in a pid namespace below its own, with pipes that the
// host made; a pidfd of each comes back. From then on the host holds the
// limits, as for any of its processes: see driver/internal/proc.
//
// What comes from the guest is taken for hostile: frames are bounded, a pidfd
// counts only if its process is a member of the sandbox.
package oci
