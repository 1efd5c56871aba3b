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
// # Containers by other programs
//
// The engines of [Runtimes] have an OCI runtime make the container, from the same
// document. Its first process is the guest as well, by a mount, on the same
// connection, which it inherits; what the guest does for each program, the control
// groups and so the limits are the same. The bundle is in a mount namespace of the
// runtime's own, and what the runtime notes is in a directory of the container's
// own: both go with it. Into gVisor no descriptors are passed: there all goes
// through frames, and the whole sandbox is what the control group bounds.
//
// What comes from the guest is taken for hostile: frames are bounded, a pidfd
// counts only if its process is a member of the sandbox.
package oci
