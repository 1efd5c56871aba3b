package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// freezer is the controller of version 1 that has processes stand still
// (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst). On version 2 every
// group can (cgroup-v2.rst, "cgroup.freeze").
const freezer = "freezer"

// findFreezer finds where groups of version 1 can be made that stand still. Only root
// can move processes of others into them.
func (t *Tree) findFreezer(own map[string]string, mounts map[string]mount) {
	m, ok := mounts[freezer]
	switch {
	case !ok:
		t.why[freezer] = "no hierarchy with the controller freezer is mounted"
		return
	case os.Geteuid() != 0:
		t.why[freezer] = "on version 1 of control groups it takes root to move processes of others into one that stands still"
		return
	}
	dir := m.join(own[freezer])
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		t.why[freezer] = fmt.Sprintf("no group can be made in %s: %v", dir, err)
		return
	}
	t.freezer = dir
}

// Freezes says why the members of groups cannot be made to stand still; nil: they can.
func (t *Tree) Freezes() error {
	switch {
	case t.v2 && t.base[Core] == "":
		return errors.New(t.why[Core])
	case !t.v2 && t.freezer == "":
		return errors.New(t.why[freezer])
	case !t.Any():
		return errors.New(t.why[Memory])
	}
	return nil
}

// FreezerDir is the directory that FreezeAll makes on version 1, and Delete removes;
// empty: it makes none.
func (g *Group) FreezerDir() string { return g.freezer }

// FreezeAll stops all members and returns when they stand still; after an error they
// go on. On version 1 they become members of one more group for that, which is made
// when it is first wanted: so that a group that is never frozen does not pay for it.
func (g *Group) FreezeAll(ctx context.Context) (err error) {
	if g == nil || !g.v2 && g.freezer == "" {
		return errors.ErrUnsupported
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Thaw())
		}
	}()
	still := func() (bool, error) { return g.Frozen(), nil }
	if !g.v2 {
		in := gathering{g: g}
		defer func() { err = errors.Join(err, in.end()) }()
		still = in.round
	}
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		// On version 1 the kernel stops who sleeps when it is told to, and not who goes to
		// sleep after that, as a parent does in vfork(2): it is told again and again.
		if err := g.orderFreeze(); err != nil {
			return err
		}
		if ok, err := still(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes do not stand still: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// orderFreeze tells the kernel, unless the members are being killed.
func (g *Group) orderFreeze() error {
	g.freezing.Lock()
	defer g.freezing.Unlock()
	switch {
	case g.dying:
		return errors.New("its processes are being killed")
	case g.v2:
		return g.Freeze(true)
	}
	if err := os.Mkdir(g.freezer, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return write(filepath.Join(g.freezer, "freezer.state"), "FROZEN")
}

// gathering is a FreezeAll of version 1.
type gathering struct {
	g      *Group
	found  int  // rounds in which there were further members
	clean  int  // the last rounds in which nothing moved
	strict bool // forks are refused
}

// calmRounds is how often it finds further members before it has their forks refused.
const calmRounds = 16

// round reports whether everything stands still.
func (x *gathering) round() (bool, error) {
	moved, err := x.g.gather()
	if err != nil {
		return false, err
	}
	if x.clean++; moved > 0 || x.g.state() != "FROZEN" {
		x.clean = 0
	}
	if moved > 0 {
		x.found++
	}
	if x.found == calmRounds && !x.strict && x.g.dir[Pids] != "" {
		x.strict = true
		err = x.g.set(Pids, "pids.max", "0")
	}
	// Twice: what is forked while members are listed may not be in the list.
	return x.clean == 2, err
}

// end allows forks again, unless the members are being killed: then whoever does that does.
func (x *gathering) end() error {
	x.g.freezing.Lock()
	defer x.g.freezing.Unlock()
	if !x.strict || x.g.dying {
		return nil
	}
	return x.g.set(Pids, "pids.max", x.g.maxPids)
}

// gather moves members into the group that stands still, and returns how many.
func (g *Group) gather() (moved int, err error) {
	all, err := g.PIDs()
	if err != nil {
		return 0, err
	}
	in, err := pidsOf(g.freezer)
	if err != nil {
		return 0, err
	}
	for _, pid := range all {
		if slices.Contains(in, pid) {
			continue
		}
		switch err := write(filepath.Join(g.freezer, "cgroup.procs"), strconv.Itoa(pid)); {
		case err == nil:
			moved++
		case !errors.Is(err, unix.ESRCH): // else it has ended
			return moved, err
		}
	}
	return moved, nil
}

func (g *Group) state() string {
	b, err := os.ReadFile(filepath.Join(g.freezer, "freezer.state"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Freezing reports whether FreezeAll has begun, and Thaw has not come.
func (g *Group) Freezing() bool {
	switch {
	case g == nil:
		return false
	case g.v2:
		return value(g.dirs[0], "cgroup.freeze", "") == 1
	case g.freezer == "":
		return false
	}
	s := g.state()
	return s == "FROZEN" || s == "FREEZING"
}

// Thaw lets the members go on.
func (g *Group) Thaw() error {
	if g == nil || !g.v2 && g.freezer == "" {
		return nil
	}
	g.freezing.Lock()
	defer g.freezing.Unlock()
	if g.v2 {
		return g.Freeze(false)
	}
	err := write(filepath.Join(g.freezer, "freezer.state"), "THAWED")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it never stood still
	}
	return err
}

// LetDie has a member that was sent SIGKILL die although the others stand still. On
// version 2 it does by itself.
func (g *Group) LetDie(pid int) {
	if g == nil || g.v2 || pid <= 0 || !g.Freezing() {
		return
	}
	// What stands still does not end: the number is not another's.
	if in, err := pidsOf(g.freezer); err == nil && slices.Contains(in, pid) {
		_ = write(filepath.Join(filepath.Dir(g.freezer), "cgroup.procs"), strconv.Itoa(pid)) // fails if it has died
	}
}

// EndFreeze lets members go on that are being killed on version 1, where they would not
// die; nothing stands still after it.
func (g *Group) EndFreeze() error {
	if g == nil || g.v2 || g.freezer == "" {
		return nil
	}
	g.freezing.Lock()
	g.dying = true
	g.freezing.Unlock()
	return g.Thaw()
}
