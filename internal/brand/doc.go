// Package brand marks processes with the sandbox and the program that they belong
// to, so that they are found wherever they went. The mark is a resource limit that
// does nothing: children inherit it, and nobody but the host can raise it.
package brand
