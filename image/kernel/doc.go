// Package kernel keeps Linux kernels for virtual machines. It takes one from a
// distribution's packages (Debian's linux-image-*-cloud-amd64; Ubuntu's
// linux-image and linux-modules), from what a host has in /boot and
// /lib/modules, or from a bare image: the uncompressed kernel, and the modules
// that a virtual machine needs, uncompressed, in an order in which they load.
//
// A [Store] is a directory; a kernel in it is a directory that is renamed there
// when it is complete. Files are hostile input: what they may cost is bounded
// by [Limits], nothing is written at a path that they name, and ELF is read by
// code of this package, since debug/elf is not made for hostile files.
//
// Only x86-64 is supported.
package kernel
