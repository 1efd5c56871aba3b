// Package document turns the document of a container, an OCI runtime-spec
// configuration as package bundle writes it, into what the builtin launcher does:
// a plan for the guest, and the part that takes the host's rights.
//
// A field is implemented or refused, by its name in the document. What is not in
// the list of implemented fields is refused when it is set, also when a later
// version of the specification adds it.
package document
