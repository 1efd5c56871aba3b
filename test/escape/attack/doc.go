// Command attack tries ways out of a sandbox. The test of the directory above
// runs it inside, where every way must be shut, and outside, where the same
// program must get through: only that tells that it would.
//
//	attack NAME JSON
//
// It prints a line for each thing that it tried: "ESCAPED thing: what it got",
// "held thing: why", or "absent thing: why" when this host has nothing of the
// kind. Where it gets through it does no harm: files are opened for writing and
// not written, calls are given arguments that do nothing.
package main
