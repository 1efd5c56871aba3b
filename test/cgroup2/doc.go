// Command cgroup2 runs tests on a Linux that has control groups of version 2
// only, with all controllers: Debian's kernel for clouds, in a virtual machine
// that QEMU emulates. See `make test-cgroup2`.
//
// The root disk is made of files of this host's Debian packages and of test
// programs that are built here. In the machine a shell runs them in turn and
// writes what they say to a serial port of virtio's, with a line for each that
// tells its status, and a last line when all are done. What does not get to the
// last line has failed.
package main
