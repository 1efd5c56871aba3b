package worker

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
)

func cpuTime() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

type runJail struct{}

func newRunJail(native *os.File, dirs []*os.File, mounts []wire.LoadMount) (runJail, error) {
	return runJail{}, nil
}
func (runJail) tighten(bool) error              { return nil }
func (runJail) report() (w, m []string)         { return nil, nil }
func jailCompile(out *os.File) (runJail, error) { return runJail{}, nil }
