package qemu

import (
	"os"

	"golang.org/x/sys/unix"
)

// Freeze stops QEMU itself (SIGSTOP): the machine uses no processor, whatever
// its guest does. Thaw has it go on.
func (m *Machine) Freeze() error { return m.signal(unix.SIGSTOP) }

// Thaw undoes Freeze.
func (m *Machine) Thaw() error { return m.signal(unix.SIGCONT) }

func (m *Machine) signal(sig unix.Signal) error {
	rc, err := m.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return os.NewSyscallError("pidfd_send_signal", serr)
}
