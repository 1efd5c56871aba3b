//go:build !linux

package worker

import (
	"errors"
	"os"
	"time"

	"github.com/axocoatl/isolation/guest/wire"
)

func cpuTime() time.Duration { return 0 }

// runJail does not exist here: the host side knows, and does not ask for it.
type runJail struct{}

var errNoJail = errors.New("workers can be jailed on Linux only")

func newRunJail(*os.File, []*os.File, []wire.LoadMount) (runJail, error) { return runJail{}, errNoJail }

func jailCompile(*os.File) (runJail, error) { return runJail{}, errNoJail }

func (runJail) tighten(bool) error { return nil }

func (runJail) report() (walls, missing []string) { return nil, nil }
