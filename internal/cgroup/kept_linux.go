package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The parts of a group with a keeper. Their names begin like those of the groups
// that they are in, by which a sweeper knows that it may remove them.
const (
	membersName = "axo-members"
	keeperName  = "axo-keeper"
)

// CreateKept makes a group like Create, whose members another user of the host
// makes: the keeper. On version 2 he has to be in a group of his own below the
// same one, and to have the right to move processes between the two
// (Documentation/admin-guide/cgroup-v2.rst, "Delegation Containment"); he
// gets no right to change limits. On version 1 he has descriptors for it. The
// limits are what it is made for; [Group.Impose] sets them.
func (t *Tree) CreateKept(name string, r Limits, uid int) (_ *Group, err error) {
	gr := &Group{v2: t.v2, dir: map[string]string{}, maxPids: "max"}
	defer func() {
		if err != nil {
			_ = gr.Delete(context.Background())
		}
	}()
	if !t.v2 {
		return gr, t.make(gr, name, r)
	}
	above := filepath.Join(t.base[Core], name)
	if err := os.Mkdir(above, 0o755); err != nil {
		return nil, err
	}
	gr.more = []string{above}
	below := &Tree{v2: true, base: map[string]string{}, why: t.why, whole: t.whole}
	var give []string
	for _, c := range t.needed(r) {
		below.base[c] = above
		if c != Core {
			give = append(give, "+"+c)
		}
	}
	if len(give) > 0 {
		if err := write(filepath.Join(above, "cgroup.subtree_control"), strings.Join(give, " ")); err != nil {
			return nil, fmt.Errorf("give controllers to groups in %s: %w", above, err)
		}
	}
	keeper := filepath.Join(above, keeperName)
	if err := os.Mkdir(keeper, 0o755); err != nil {
		return nil, err
	}
	gr.more = []string{keeper, above}
	if gr.keeper, err = openDir(keeper); err != nil {
		return nil, err
	}
	if err := below.make(gr, membersName, r); err != nil {
		return nil, err
	}
	for _, dir := range []string{above, gr.dirs[0]} {
		if uid == os.Geteuid() {
			break
		}
		if err := unix.Chown(filepath.Join(dir, "cgroup.procs"), uid, -1); err != nil {
			return nil, &os.PathError{Op: "chown", Path: filepath.Join(dir, "cgroup.procs"), Err: err}
		}
	}
	return gr, nil
}

// KeeperPath is the keeper's group by its path in the hierarchy; empty: there is
// none.
func (g *Group) KeeperPath() string {
	if g.Keeper() == nil {
		return ""
	}
	_, mounts, err := ownGroups()
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(g.more[0], mounts[""].point)
}

// KeptPaths are the directories of a group of CreateKept, in the order in which
// they can be removed.
func (t *Tree) KeptPaths(name string, r Limits) []string {
	out := t.Paths(name, r)
	if !t.v2 {
		return out
	}
	above := out[0]
	return slices.Insert(out, 0, filepath.Join(above, membersName), filepath.Join(above, keeperName))
}
