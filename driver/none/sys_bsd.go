//go:build unix && !linux

package none

import (
	"os"
	"syscall"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

var portableWarnings = []string{
	"a background process that leaves its process group is not counted, and outlives its sandbox",
	"a host program that is killed leaves its processes behind",
	"descriptors that the host program opened without close-on-exec reach its programs",
}

func procAttr(c *credential) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if c != nil {
		a.Credential = &syscall.Credential{Uid: c.uid, Gid: c.gid, Groups: c.groups}
	}
	return a
}

// groupSignal signals the process group of a leader that may have been waited
// for: its number is not given out again while the group has members.
func groupSignal(pid int, s syscall.Signal) error { return syscall.Kill(-pid, s) }

func exitStatus(ps *os.ProcessState) proc.Status {
	ws := ps.Sys().(syscall.WaitStatus)
	if !ws.Signaled() {
		return proc.Status{Code: ws.ExitStatus()}
	}
	st := proc.Status{Forced: ws.Signal() == syscall.SIGKILL}
	for linux, s := range signals {
		if s == ws.Signal() {
			st.Signal = linux
		}
	}
	return st
}

func hostSignal(s isolation.Signal) (os.Signal, bool) { h, ok := signals[s]; return h, ok }

// signals maps Linux's numbers to this system's.
var signals = map[isolation.Signal]syscall.Signal{
	1: syscall.SIGHUP, 2: syscall.SIGINT, 3: syscall.SIGQUIT, 4: syscall.SIGILL, 5: syscall.SIGTRAP,
	6: syscall.SIGABRT, 7: syscall.SIGBUS, 8: syscall.SIGFPE, 9: syscall.SIGKILL, 10: syscall.SIGUSR1,
	11: syscall.SIGSEGV, 12: syscall.SIGUSR2, 13: syscall.SIGPIPE, 14: syscall.SIGALRM, 15: syscall.SIGTERM,
	17: syscall.SIGCHLD, 18: syscall.SIGCONT, 19: syscall.SIGSTOP, 20: syscall.SIGTSTP, 21: syscall.SIGTTIN,
	22: syscall.SIGTTOU, 23: syscall.SIGURG, 24: syscall.SIGXCPU, 25: syscall.SIGXFSZ, 26: syscall.SIGVTALRM,
	27: syscall.SIGPROF, 28: syscall.SIGWINCH, 29: syscall.SIGIO, 31: syscall.SIGSYS,
}
