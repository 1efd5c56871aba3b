package none

import (
	"context"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/internal/cgroup"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// nativePlace is one sandbox of native programs.
type nativePlace struct {
	*proc.Tracked
	eng   *nativeEngine
	brand proc.Brand
	group *cgroup.Group // nil: none
	entry Entry         // nil: none
}

// startProgram is the Start of a [proc.Tracked].
func (pl *nativePlace) startProgram(_ context.Context, p *proc.Process, files [3]*os.File, b proc.Brand) (proc.Child, error) {
	g, err := pl.eng.cfg.resolve(p.Spec)
	if err != nil {
		return nil, err
	}
	c, err := startChild(&pl.eng.spawner, g, p.Spec, files, b, pl.group)
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.NoneStarted)
	c.hostPeak = ownPeak()
	return c, nil
}

// Remove also closes the journal's entry.
func (pl *nativePlace) Remove(ctx context.Context) error {
	if err := pl.Tracked.Remove(ctx); err != nil {
		return err
	}
	failpoint.Hit(failpoint.NoneRemoved)
	if pl.entry == nil {
		return nil
	}
	return pl.entry.Done()
}

// ownPeak is the resident peak of the host program.
func ownPeak() int64 {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return math.MaxInt64
	}
	return ru.Maxrss << 10
}
