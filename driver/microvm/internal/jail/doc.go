// Package jail starts the program of a virtual machine with next to nothing
// around it, and keeps what it says.
//
// The program has namespaces of its own for users, processes, mounts, network,
// IPC, host name and control groups; the user nobody, no capabilities and
// no_new_privs; the control groups that it was given; and a root file system
// that has the program, /dev/kvm, /proc and one directory to write to.
package jail
