// Package inside runs test programs of this module in a virtual machine that QEMU
// emulates, with Debian's kernel for clouds: on a Linux that is not the host's.
//
// The root disk is made of files of this host's Debian packages and of test
// programs that are built here. In the machine a shell runs them in turn and
// writes what they say to a serial port of virtio's, with a line for each that
// tells its status, and a last line when all are done. What does not get to the
// last line has failed.
package inside
