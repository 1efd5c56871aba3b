package brand

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Brand is the value of RLIMIT_RTTIME (microseconds) that tells whose
// process it is: bit 62, which makes it endless, the sandbox, the exec.
type Brand uint64

const (
	mark     Brand = 1 << 62
	execBits       = 24
	execMask Brand = 1<<execBits - 1
)

// New returns the brand of a new sandbox. A limit that the host program has
// itself, such as the brand of a sandbox that it runs in, can be lowered by
// everybody, and raised with a privilege that not even every root has.
func New() (Brand, error) {
	var host unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTTIME, &host); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	room := uint64(mark)
	if host.Max != unix.RLIM_INFINITY {
		if Brand(host.Max) <= mark+execMask {
			return 0, fmt.Errorf("the host program has a limit on real-time CPU (RLIMIT_RTTIME) of %d us; start it without one", host.Max)
		}
		room = min(room, host.Max-uint64(mark)-uint64(execMask))
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return mark | Brand(binary.LittleEndian.Uint64(b[:])%room)&^execMask, nil
}

// Exec returns the brand of the n-th exec of the sandbox b.
func (b Brand) Exec(n uint64) Brand { return b&^execMask | Brand(n)&execMask }

// Number is which exec of its sandbox it is.
func (b Brand) Number() uint64 { return uint64(b & execMask) }

// Guest is the brand of what is a sandbox's and no exec: the highest, so that it can
// be lowered to any other.
func (b Brand) Guest() Brand { return b | execMask }

// Name is what the sandbox's resources can be named by: unique on the host.
func (b Brand) Name() string { return strconv.FormatUint(uint64(b)>>execBits, 16) }

// IsValid reports whether it is one: any number that is not has no sandbox, and most
// processes have none.
func (b Brand) IsValid() bool { return b>>62 == 1 }

// SameSandbox reports whether two brands are of one sandbox.
func (b Brand) SameSandbox(other Brand) bool {
	return b.IsValid() && other.IsValid() && b.Sandbox() == other.Sandbox()
}

// Sandbox is the brand without the exec.
func (b Brand) Sandbox() Brand { return b &^ execMask }

// Of returns the brand of a process; 0 if it has none or is gone.
func Of(pid int) Brand {
	var l unix.Rlimit
	switch unix.Prlimit(pid, unix.RLIMIT_RTTIME, nil, &l) {
	case nil:
	case unix.EPERM: // another user's, which the file tells to everybody
		l.Max = rttimeOf(pid)
	default:
		return 0
	}
	if b := Brand(l.Max); b.IsValid() {
		return b
	}
	return 0
}

// rttimeOf reads /proc/pid/limits (proc_pid_limits(5)).
func rttimeOf(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if err != nil {
		return 0
	}
	_, line, _ := bytes.Cut(b, []byte("Max realtime timeout"))
	line, _, _ = bytes.Cut(line, []byte("\n"))
	f := bytes.Fields(line) // soft, hard, unit
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseUint(string(f[1]), 10, 64) // 0 for "unlimited"
	return n
}
