package worker

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/internal/landlock"
)

// landlockDir is a directory that stays reachable.
type landlockDir struct {
	dir      *os.File
	writable bool
}

// restrict restricts every thread of the process to dirs. Devices, sockets,
// FIFOs and executing are in none of them. It returns what it enforced, for people.
func restrict(dirs []landlockDir) (string, error) {
	rules := make([]landlock.Rule, 0, len(dirs))
	for _, d := range dirs {
		r := landlock.Rule{FD: int(d.dir.Fd()), Access: landlock.Read}
		if d.writable {
			r.Access |= landlock.Change
		}
		rules = append(rules, r)
	}
	set, abi, err := landlock.New(landlock.Denied{TCP: true, Others: true}, rules)
	if err != nil {
		return "", err
	}
	defer set.Close()
	// Threads that exist already would stay free: the runtime made some before
	// main.
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set.Fd(), 0, 0); e != 0 {
		return "", allThreadsError("landlock_restrict_self", e)
	}
	return fmt.Sprintf("ABI %d, %d directories reachable", abi, len(dirs)), nil
}

func allThreadsError(what string, e syscall.Errno) error {
	if e == syscall.ENOTSUP {
		return fmt.Errorf("%s: this program was built with cgo, which cannot restrict all threads: build it with CGO_ENABLED=0", what)
	}
	return os.NewSyscallError(what, e)
}
