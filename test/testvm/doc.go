// Package testvm has the template of virtual machines that tests of several
// packages share: emulated, with this host's system, as axo setup microvm makes
// it. It is built once and kept in the user's cache directory, for as long as what
// it is made of stays the same.
package testvm
