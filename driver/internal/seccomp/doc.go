// Package seccomp compiles profiles of the OCI runtime specification into
// programs of the kernel (seccomp(2)). The kernel walks a program for every
// system call number when it is loaded, so a program is a tree over ranges of
// numbers: a fraction of the instructions, and of the load time, of a list.
//
// Only the host's own architecture is let through. Calls of its 32-bit sibling,
// and of x32, get ENOSYS.
package seccomp
