// Package bundle writes the one document that describes a container, in the
// words of the OCI runtime specification 1.3 (config.md, config-linux.md). Every
// engine of the tier makes its containers from it: the builtin launcher, which
// turns it into a plan for the guest, and the runtimes that are other programs.
//
// The document says what the container is to the programs that run in it: their
// user, that they have no capabilities, their seccomp profile, what they see
// of the file system. It is a function of the Spec and of the Facts alone:
// equal ones give equal bytes.
//
// # What the document cannot say
//
// A bundle (bundle.md) is a document and a root file system. Paths of the
// document that are not absolute are in the bundle: "rootfs", and below
// "scratch" the writable directories, which share one file system so that one
// size bounds all that is written. What is in them stands in [Bundle.Root].
//
// Programs are started by a first process, axo-guest, in a pid namespace below
// its own. A runtime that does not know of it gets the document of
// [Bundle.Hosted].
package bundle
