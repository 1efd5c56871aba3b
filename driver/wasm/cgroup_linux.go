package wasm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// memoryGroups makes control groups that bound the memory of workers: the wall
// behind the engine's own limit. It works with version 1 and version 2 of the
// interface (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst).
type memoryGroups struct {
	base string // where groups are made: this process's own group
	kind string // "cgroup v1" or "cgroup v2"
	v2   bool
}

// memoryGroup is one worker's group.
type memoryGroup struct {
	dir string
	v2  bool
}

// findMemoryGroups finds this process's group and tries to make one below it.
func findMemoryGroups() (*memoryGroups, error) {
	own, err := ownGroups("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := groupMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var g *memoryGroups
	if m, ok := mounts["memory"]; ok {
		g = &memoryGroups{base: m.join(own["memory"]), kind: "cgroup v1"}
	} else if m, ok := mounts[""]; ok {
		g = &memoryGroups{base: m.join(own[""]), kind: "cgroup v2", v2: true}
	} else {
		return nil, errors.New("no control groups with a memory controller are mounted")
	}
	try, err := g.create(fmt.Sprintf("axo-wasm-%d-try", os.Getpid()), 64<<20)
	if err != nil {
		return nil, fmt.Errorf("%s: no group can be made below %s: %w", g.kind, g.base, err)
	}
	if err := try.delete(); err != nil {
		return nil, err
	}
	return g, nil
}

// groupMount is where a hierarchy is mounted, and which part of it.
type groupMount struct{ root, point string }

// join returns the directory of a group. A path outside of what is mounted, as
// in some containers, falls back to the mount itself.
func (m groupMount) join(path string) string {
	rel, err := filepath.Rel(m.root, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return m.point
	}
	return filepath.Join(m.point, rel)
}

// ownGroups reads cgroup(7), /proc/pid/cgroup: the path for each v1 controller,
// and for v2 under "".
func ownGroups(file string) (map[string]string, error) {
	out := map[string]string{}
	err := eachLine(file, func(line string) {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			return
		}
		for _, c := range strings.Split(f[1], ",") {
			out[c] = f[2]
		}
	})
	return out, err
}

// groupMounts reads the mount points from proc_pid_mountinfo(5): by v1
// controller, and v2 under "".
func groupMounts(file string) (map[string]groupMount, error) {
	out := map[string]groupMount{}
	err := eachLine(file, func(line string) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			return
		}
		m := groupMount{f[3], f[4]}
		switch g[0] {
		case "cgroup2":
			out[""] = m
		case "cgroup":
			for _, c := range strings.Split(g[2], ",") {
				out[c] = m
			}
		}
	})
	return out, err
}

func eachLine(file string, f func(string)) error {
	h, err := os.Open(file)
	if err != nil {
		return err
	}
	defer h.Close()
	s := bufio.NewScanner(h)
	for s.Scan() {
		f(s.Text())
	}
	return s.Err()
}

func (g *memoryGroups) path(name string) string { return filepath.Join(g.base, name) }

// create makes a group with a memory limit in bytes.
func (g *memoryGroups) create(name string, limit int64) (_ *memoryGroup, err error) {
	m := &memoryGroup{g.path(name), g.v2}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.Remove(m.dir)
		}
	}()
	file := "memory.limit_in_bytes"
	if g.v2 {
		file = "memory.max"
	}
	if err := m.write(file, limit); err != nil {
		return nil, err
	}
	if g.v2 {
		// Swap would turn a limit into a slow-down. Where the kernel has no
		// swap accounting there is no file.
		if err := m.write("memory.swap.max", 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return m, nil
}

func (m *memoryGroup) write(file string, v int64) error {
	return os.WriteFile(filepath.Join(m.dir, file), strconv.AppendInt(nil, v, 10), 0)
}

func (m *memoryGroup) attach(pid int) error { return m.write("cgroup.procs", int64(pid)) }

// oomKilled reports whether the kernel killed a process of the group for
// memory.
func (m *memoryGroup) oomKilled() bool {
	file := "memory.oom_control"
	if m.v2 {
		file = "memory.events"
	}
	killed := false
	_ = eachLine(filepath.Join(m.dir, file), func(line string) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok && n != "0" {
			killed = true
		}
	})
	return killed
}

// delete removes the group. Its last process is gone, but the kernel may need a
// moment to notice.
func (m *memoryGroup) delete() error {
	var err error
	for wait := time.Millisecond; wait < time.Second; wait *= 2 {
		if err = os.Remove(m.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(wait)
	}
	return err
}
