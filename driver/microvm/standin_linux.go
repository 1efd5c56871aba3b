//go:build standin

package microvm

// standIn is for programs that are built with the tag "standin", by tests: what they
// find as Firecracker is what takes its place (internal/standin), whose QEMU needs
// these paths of the host. It needs no KVM, and is emulated.
var standIn = []string{"/dev/null", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache"}
