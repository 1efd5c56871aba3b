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
// and QEMU's own.
func (s Shape) HostBytes() int64 {
	n := int64(s.MemoryMiB+64) << 20
	if s.Accel == TCG {
		n += jitMiB << 20
	}
	return n
}
