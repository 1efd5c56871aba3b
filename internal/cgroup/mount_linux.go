package cgroup

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mount is where a hierarchy is mounted, and which part of it.
type mount struct{ root, point string }

// join returns the directory of a group. One outside of what is mounted, as
// a container may see it, is the mount itself.
func (m mount) join(path string) string {
	rel, err := filepath.Rel(m.root, path)
	if err != nil || !filepath.IsLocal(rel) {
		return m.point
	}
	return filepath.Join(m.point, rel)
}

// ownGroups reads this process's group for each controller (cgroups(7)), and
// where its hierarchy is mounted (proc_pid_mountinfo(5)). Version 2 is under "".
func ownGroups() (own map[string]string, mounts map[string]mount, err error) {
	own, mounts = map[string]string{}, map[string]mount{}
	err = lines("/proc/self/cgroup", func(line string) {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 {
			for c := range strings.SplitSeq(f[1], ",") {
				own[c] = f[2]
			}
		}
	})
	if err != nil {
		return nil, nil, err
	}
	err = lines("/proc/self/mountinfo", func(line string) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			return
		}
		switch g[0] {
		case "cgroup2":
			mounts[""] = mount{f[3], f[4]}
		case "cgroup":
			for c := range strings.SplitSeq(g[2], ",") {
				mounts[c] = mount{f[3], f[4]}
			}
		}
	})
	return own, mounts, err
}

// Named lists the directories that groups of this name have in every hierarchy,
// whatever its controllers: below this process's own groups, and at the top.
// Other programs make them there.
func Named(name string) ([]string, error) {
	own, mounts, err := ownGroups()
	if err != nil {
		return nil, err
	}
	var out []string
	for c, m := range mounts {
		out = append(out, filepath.Join(m.join(own[c]), name), filepath.Join(m.point, name))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func lines(file string, f func(string)) error {
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
