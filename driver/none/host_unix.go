//go:build unix

package none

import (
	"os"
	"syscall"
)

var errNotDir error = syscall.ENOTDIR

func privileged() bool { return os.Geteuid() == 0 }
