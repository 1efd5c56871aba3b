package qemu

// Accelerators (qemu-system-x86_64(1), -accel).
const (
	KVM = "kvm"
	TCG = "tcg" // emulation
)

// Shape is what a snapshot's machine and the one that is restored from it have in
// common.
type Shape struct {
	Accel     string `json:"accel"`
	MemoryMiB int    `json:"memory_mib"`
	CPUs      int    `json:"cpus"`
}

// jitMiB bounds the emulator's translated code. With less, Python's is thrown
// away while it runs.
const jitMiB = 96

// HostBytes bounds the memory that a machine may take of the host: the guest's
// and QEMU's own. The guest's counts twice: where the template's memory file has a
// hole the kernel first makes a page of zeroes in the file, which all machines of
// the template then share, and charges it to the group of the one that came first;
// its own copy is charged as well.
func (s Shape) HostBytes() int64 {
	n := int64(2*s.MemoryMiB+64) << 20
	if s.Accel == TCG {
		n += jitMiB << 20
	}
	return n
}
