package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// noPause begins the warning of a host on which containers cannot be paused.
const noPause = "no pause of sandboxes: "

// freezes says why containers cannot be paused; nil: they can.
func (e *builtin) freezes() error {
	if err := e.groups(false).Freezes(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.frozen
}

// place is what a container is to its driver.
func (c *container) place() proc.Place {
	if c.group == nil || c.eng.freezes() != nil {
		return c
	}
	return freezable{c}
}

// place makes no place of a nil.
func place(c *container, err error) (proc.Place, error) {
	if err != nil {
		return nil, err
	}
	return c.place(), nil
}

// freezable is a container whose programs can be made to stand still: all of them are in
// its control group. The guest is not, and goes on: it serves its host, and uses no
// processor unless it is asked something.
type freezable struct{ *container }

// Pause implements [proc.Pauser].
func (f freezable) Pause(ctx context.Context) error {
	if err := f.freeze(ctx); err != nil {
		return err
	}
	failpoint.Hit(failpoint.OCIStill)
	if err := f.keepPaused(true); err != nil {
		return errors.Join(err, f.group.Thaw())
	}
	failpoint.Hit(failpoint.OCIPaused)
	return nil
}

// Resume implements [proc.Pauser].
func (f freezable) Resume(ctx context.Context) error {
	if err := f.group.Thaw(); err != nil {
		return err
	}
	failpoint.Hit(failpoint.OCIWoken)
	if err := f.keepPaused(false); err != nil {
		return errors.Join(err, f.freeze(ctx))
	}
	failpoint.Hit(failpoint.OCIResumed)
	return nil
}

// freezePatience is how long the kernel may take until all processes stand still. One that
// waits for a disk has to come back from there.
const freezePatience = 10 * time.Second

func (c *container) freeze(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezePatience)
	defer cancel()
	if dir := c.group.FreezerDir(); dir != "" && c.entry != nil {
		if _, err := os.Lstat(dir); err != nil {
			if err := c.entry.AddPath("cgroup", dir); err != nil {
				return fmt.Errorf("record %s: %w", c.name, err)
			}
		}
	}
	if err := c.group.FreezeAll(ctx); err != nil {
		return fmt.Errorf("freeze: %w (%w)", err, isolation.ErrUnavailable)
	}
	c.Stopped()
	return nil
}

// stood is how long it stands still by now.
func (c *container) stood() time.Duration {
	if c.pausedAt == 0 {
		return 0
	}
	return time.Duration(monotonic() - c.pausedAt)
}

// keepPaused writes down that the container is paused, or that it goes on: its programs
// began as much later as it stood still.
func (c *container) keepPaused(on bool) error {
	if c.kept == nil {
		return nil
	}
	var s session
	if err := c.kept.Data(&s); err != nil {
		return err
	}
	s.Paused = 0
	if on {
		s.Paused = monotonic()
	}
	if err := c.kept.SetData(s); err != nil {
		return fmt.Errorf("record %s: %w", c.name, err)
	}
	stood := c.stood()
	c.pausedAt = s.Paused
	if stood == 0 {
		return nil
	}
	var errs []error
	err := c.kept.Notes(func(name string, b []byte, err error) {
		var n note
		if err == nil && json.Unmarshal(b, &n) == nil {
			n.Began += int64(stood)
			errs = append(errs, c.kept.Note(name, n))
		}
	})
	if err := errors.Join(append(errs, err)...); err != nil {
		// They have less time than they should, if this process does not see their ends.
		c.eng.cfg.Logger.Warn("how long a container stood still is not written down", "sandbox", c.name, "error", err)
	}
	return nil
}

// tryFreeze has a program stand still, and go on.
func (c *container) tryFreeze(ctx context.Context) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	in, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	defer end.Close()
	in.Fd() // lets it block: it is the program's
	ch, err := c.conn.spawn(ctx, &wire.SpawnMessage{Args: []string{"/bin/sh", "-c", "read x"}, Rlimits: c.rlimits(isolation.Limits{}, c.brand)},
		[]*os.File{in, null, null})
	if err != nil {
		return err
	}
	if err := c.freeze(ctx); err != nil {
		return errors.Join(err, ch.Signal(unix.SIGKILL))
	}
	if err := c.group.Thaw(); err != nil {
		return err
	}
	end.Close()
	select {
	case <-ch.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a program that was frozen does not go on: %w", ctx.Err())
	}
}
