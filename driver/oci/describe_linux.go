package oci

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/seccomp"
	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/driver/oci/internal/document"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// What a program sees of itself in the host's system directories.
const (
	userName = "user"
	userID   = 1000
	homeDir  = "/home/user"
)

// describe writes the document of a container, and reads it as this engine
// does.
func (e *builtin) describe(c *container, spec isolation.Spec) (*bundle.Bundle, *document.Container, error) {
	f := bundle.Facts{DiskBytes: e.cfg.DiskBytes, UIDs: c.ids.uids(), GIDs: c.ids.gids()}
	var sources []string // what the staging directory must not be above
	if c.root == nil {
		f.System = system.entries()
		f.User = bundle.User{Name: userName, UID: userID, GID: userID, Home: homeDir}
		sources = paths(f.System)
	} else {
		var err error
		if f.Dirs, err = c.root.Config.Dirs(); err != nil {
			return nil, nil, err
		}
		f.Layers = c.root.Layers
		f.User = bundle.User{UID: max(c.root.UID, 0), GID: max(c.root.GID, 0)}
		sources = f.Layers
	}
	writable := false
	for _, m := range spec.Mounts {
		writable = writable || !m.ReadOnly
		sources = append(sources, filepath.Clean(m.Source))
		s, err := c.source(m)
		if err != nil {
			return nil, nil, err
		}
		f.Mounts = append(f.Mounts, s)
	}
	if !spec.Resources.IO.IsZero() {
		for _, d := range cgroup.Disks() {
			f.Disks = append(f.Disks, bundle.Disk{Major: int64(d.Major), Minor: int64(d.Minor)})
		}
	}
	var err error
	if f.Seccomp, err = seccomp.Profile(bundle.Capabilities(spec), writable); err != nil {
		return nil, nil, err
	}
	b := bundle.New(spec, f)
	d, err := document.Read(b)
	if err != nil {
		return nil, nil, err
	}
	p := &d.Plan.Process
	p.KeepGroups = c.ids.single
	if c.root != nil {
		p.User, p.Image = cmp.Or(c.root.Config.User, "0"), true
	}
	d.Plan.Staging, err = staging(sources)
	return b, d, err
}

// source looks at what a mount is of. As root, its owner is the sandbox's user
// inside; else everything belongs to the one user that there is.
func (c *container) source(m isolation.Mount) (bundle.Source, error) {
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		return bundle.Source{}, fmt.Errorf("mount %s: %w (%w)", m.Source, os.NewSyscallError("stat", err), isolation.ErrNotFound)
	}
	return bundle.Source{
		File: st.Mode&unix.S_IFMT != unix.S_IFDIR, Mapped: c.ids.base > 0, UID: int(st.Uid), GID: int(st.Gid),
	}, nil
}

// paths are the names of a system's parts.
func paths(list []bundle.Entry) (out []string) {
	for _, x := range list {
		out = append(out, x.Path)
	}
	return out
}

// systemCache keeps what the host's system directories are, and which of the names that
// are the host's or its kernel's are files, for a moment: it takes some sixty looks to
// find out.
type systemCache struct {
	mu    sync.Mutex
	until time.Time
	list  []bundle.Entry
	kinds map[string]kind // as many as there are such names: no caller's are among them
	// age counts the changes that were seen.
	age uint64
}

// kind is what has a name.
type kind uint8

const (
	kindNone kind = iota
	kindFile
	kindDir
)

var system systemCache

func (s *systemCache) entries() []bundle.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freshLocked()
	return s.list
}

// staging is where a root of the system directories is built, and the age of what is
// known of them. What was made of the same at the same age can be used again.
func (s *systemCache) staging() (dir string, age uint64, err error) {
	s.mu.Lock()
	s.freshLocked()
	list, age := s.list, s.age
	s.mu.Unlock()
	dir, err = staging(paths(list))
	return dir, age, err
}

// has reports whether a name is a part of the host's system.
func (s *systemCache) has(name string) bool {
	return slices.ContainsFunc(s.entries(), func(e bundle.Entry) bool { return e.Path == name })
}

// kind looks at a name of the host's system or kernel, through links. It may have
// changed since: who makes a mount of it says so again, and the kernel refuses the
// wrong one.
func (s *systemCache) kind(name string) kind {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freshLocked()
	k, ok := s.kinds[name]
	if !ok {
		k = kindOf(name)
		s.kinds[name] = k
	}
	return k
}

func (s *systemCache) freshLocked() {
	now := time.Now()
	if !now.After(s.until) {
		return
	}
	s.until = now.Add(time.Second)
	list := bundle.HostSystem()
	same := slices.Equal(list, s.list)
	for name, k := range s.kinds {
		same = same && kindOf(name) == k
	}
	if !same {
		s.list, s.kinds, s.age = list, map[string]kind{}, s.age+1
	}
}

func kindOf(name string) kind {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return kindNone
	case info.IsDir():
		return kindDir
	}
	return kindFile
}
