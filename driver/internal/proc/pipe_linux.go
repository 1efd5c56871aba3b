package proc

import (
	"os"

	"golang.org/x/sys/unix"
)

// newPipe makes a pipe of which our end alone is non-blocking: the program
// must get the blocking one that every program expects.
func newPipe(weRead bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if !weRead {
		fds[0], fds[1] = fds[1], fds[0]
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "|ours"), os.NewFile(uintptr(fds[1]), "|theirs"), nil
}
