//go:build unstirred

package guest

import (
	"sync"

	"golang.org/x/sys/unix"
)

var fresh sync.Once

// stir does nothing in the guest of one test, which shows what copies of a machine
// have in common without it. No program is shipped with this tag. Once, in the machine
// of which the copies are made, the generator is reseeded: so it does not reseed
// itself for the next seconds, and nothing else makes a difference.
func (m *machine) stir([]byte) error {
	fresh.Do(func() { _, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fdOf(m.random)), 0x5207, 0) }) // RNDRESEEDCRNG
	return nil
}
