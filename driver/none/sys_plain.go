//go:build !unix

package none

import (
	"errors"
	"os"
	"syscall"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

var portableWarnings = []string{
	"background children are not known: they are neither counted nor ended with the sandbox",
	"a host program that is killed leaves its processes behind",
}

func procAttr(*credential) *syscall.SysProcAttr { return nil }

func groupSignal(int, syscall.Signal) error { return errors.ErrUnsupported }

// exitStatus: a kill is an exit with status 1 here (os.Process.Kill).
func exitStatus(ps *os.ProcessState) proc.Status {
	return proc.Status{Code: ps.ExitCode(), Forced: ps.ExitCode() == 1}
}

func hostSignal(s isolation.Signal) (os.Signal, bool) { return os.Kill, s == isolation.SIGKILL }
