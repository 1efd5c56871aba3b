package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// State is what tells a group to a later process.
type State struct {
	V2      bool              `json:"v2,omitempty"`
	Dirs    map[string]string `json:"dirs"` // controller to directory
	List    string            `json:"list"` // the directory in which the members are listed
	MaxPids string            `json:"max_pids,omitempty"`
}

// State returns what Reopen takes; nil for no group.
func (g *Group) State() *State {
	if g == nil {
		return nil
	}
	return &State{g.v2, g.dir, g.dirs[0], g.maxPids}
}

// Reopen finds a group again that this program has made below the control groups of
// this host; what s says is not trusted. Nobody new joins it through this side.
func Reopen(s *State) (*Group, error) {
	if s == nil {
		return nil, nil
	}
	g := &Group{v2: s.V2, dir: map[string]string{}, maxPids: s.MaxPids}
	if g.maxPids == "" {
		g.maxPids = "max"
	}
	name := filepath.Base(s.List)
	for c, dir := range s.Dirs {
		if c != Core && !slices.Contains(controllers, c) {
			return nil, fmt.Errorf("there is no controller %.40q", c)
		}
		if filepath.Clean(dir) != dir || !strings.HasPrefix(dir, "/sys/fs/cgroup/") || !strings.HasPrefix(name, "axo-") || filepath.Base(dir) != name {
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
