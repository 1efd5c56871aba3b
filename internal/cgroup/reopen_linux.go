package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// State is what tells a group to a later process.
type State struct {
	V2      bool              `json:"v2,omitempty"`
	Dirs    map[string]string `json:"dirs"`           // controller to directory
	List    string            `json:"list"`           // the directory in which the members are listed
	Kept    bool              `json:"kept,omitempty"` // made by CreateKept, of version 2
	MaxPids string            `json:"max_pids,omitempty"`
	Freezer string            `json:"freezer,omitempty"` // version 1: the directory in which members stand still, if it is there
}

// State returns what Reopen takes, of a group that has these limits or is about to
// get them; nil for no group.
func (g *Group) State(r Limits) *State {
	if g == nil {
		return nil
	}
	s := &State{g.v2, g.dir, g.dirs[0], len(g.more) > 0, "max", g.freezer}
	if r.Pids > 0 {
		s.MaxPids = itoa(r.Pids)
	}
	return s
}

// Name is the one that the group was made by.
func (g *Group) Name() string {
	if len(g.more) > 0 {
		return filepath.Base(filepath.Dir(g.dirs[0]))
	}
	return filepath.Base(g.dirs[0])
}

// Reopen finds a group again that this program has made below the control groups of
// this host; what s says is not trusted. Nobody new joins it through this side.
func Reopen(s *State) (*Group, error) {
	if s == nil {
		return nil, nil
	}
	g := &Group{v2: s.V2, dir: map[string]string{}, maxPids: s.MaxPids}
	if n, err := strconv.ParseInt(g.maxPids, 10, 64); err != nil || n <= 0 {
		g.maxPids = "max"
	}
	name := filepath.Base(s.List)
	if s.Kept {
		above := filepath.Dir(s.List)
		if name != membersName || !s.V2 || !strings.HasPrefix(filepath.Base(above), "axo-") {
			return nil, fmt.Errorf("%.200q is not a control group of this program", s.List)
		}
		g.more = []string{filepath.Join(above, keeperName), above}
	}
	if g.freezer = s.Freezer; g.freezer != "" && (s.V2 || !ours(g.freezer, name)) {
		return nil, fmt.Errorf("%.200q is not a control group of this program", g.freezer)
	}
	for c, dir := range s.Dirs {
		if c != Core && !slices.Contains(controllers, c) {
			return nil, fmt.Errorf("there is no controller %.40q", c)
		}
		if !ours(dir, name) {
			return nil, fmt.Errorf("%.200q is not a control group of this program", dir)
		}
		if info, err := os.Lstat(dir); err != nil {
			return nil, err
		} else if !info.IsDir() {
			return nil, fmt.Errorf("%.200q is no control group", dir)
		}
		g.dir[c] = dir
		if dir == s.List {
			g.dirs = append([]string{dir}, slices.DeleteFunc(g.dirs, func(d string) bool { return d == dir })...)
		} else if !slices.Contains(g.dirs, dir) {
			g.dirs = append(g.dirs, dir)
		}
	}
	if len(g.dirs) == 0 || g.dirs[0] != s.List {
		return nil, fmt.Errorf("the control group has no directory %.200q", s.List)
	}
	return g, nil
}

// ours reports whether a directory can be one that this program has made for a group of
// this name.
func ours(dir, name string) bool {
	return filepath.Clean(dir) == dir && strings.HasPrefix(dir, "/sys/fs/cgroup/") && strings.HasPrefix(name, "axo-") && filepath.Base(dir) == name
}
