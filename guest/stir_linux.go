//go:build !unstirred

package guest

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stir mixes entropy into the kernel's, credits it, and has the generator use it
// at once (random(4)).
func (m *machine) stir(entropy []byte) error {
	// struct rand_pool_info
	b := binary.NativeEndian.AppendUint32(nil, uint32(len(entropy)*8))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(entropy)))
	b = append(b, entropy...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	fd := uintptr(fdOf(m.random))
	if _, _, e := unix.RawSyscall(unix.SYS_IOCTL, fd, unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&b[0]))); e != 0 {
		return os.NewSyscallError("RNDADDENTROPY", e)
	}
	clear(b)
	if _, _, e := unix.RawSyscall(unix.SYS_IOCTL, fd, rndReseedCRNG, 0); e != 0 {
		return os.NewSyscallError("RNDRESEEDCRNG", e)
	}
	return nil
}

// rndReseedCRNG is _IO('R', 0x07) of linux/random.h.
const rndReseedCRNG = 0x5207
