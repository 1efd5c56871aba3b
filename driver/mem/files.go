package mem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// tree is a sandbox's file system. Programs do not see it.
type tree struct {
	mu      sync.Mutex
	nodes   map[string]*node // by clean absolute path
	watches map[*watch]bool
}

type node struct {
	mode     fs.FileMode
	data     []byte
	modified time.Time
}

type watch struct {
	name string
	all  bool
	ch   chan isolation.FileEvent
	lost bool
}

func newTree() *tree {
	t := &tree{watches: map[*watch]bool{}}
	t.resetLocked()
	return t
}

// resetLocked leaves the root and /tmp.
func (t *tree) resetLocked() {
	now := time.Now()
	t.nodes = map[string]*node{"/": {fs.ModeDir | 0o755, nil, now}, "/tmp": {fs.ModeDir | fs.ModeSticky | 0o777, nil, now}}
}

func clean(name string) (string, error) {
	if !path.IsAbs(name) || strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%.80q is not an absolute path: %w", name, isolation.ErrInvalidArgument)
	}
	return path.Clean(name), nil
}

func (t *tree) findLocked(name string) (*node, error) {
	if n := t.nodes[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("%s: %w", name, isolation.ErrNotFound)
}

// parentLocked reports why nothing can be made under a name.
func (t *tree) parentLocked(name string) error {
	up, err := t.findLocked(path.Dir(name))
	if err == nil && !up.mode.IsDir() {
		err = fmt.Errorf("%s is not a directory: %w", path.Dir(name), isolation.ErrNotFound)
	}
	return err
}

func (t *tree) belowLocked(name string) (names []string) {
	prefix := strings.TrimSuffix(name, "/") + "/"
	for n := range t.nodes {
		if n != "/" && strings.HasPrefix(n, prefix) {
			names = append(names, n)
		}
	}
	return names
}

// tellLocked tells who watches. One who is slow is told later that there was
// more.
func (t *tree) tellLocked(e isolation.FileEvent) {
	for w := range t.watches {
		if e.Name != w.name && path.Dir(e.Name) != w.name && !(w.all && strings.HasPrefix(e.Name, strings.TrimSuffix(w.name, "/")+"/")) {
			continue
		}
		if w.lost {
			select {
			case w.ch <- isolation.FileEvent{Lost: true}:
				w.lost = false
			default:
				continue
			}
		}
		select {
		case w.ch <- e:
		default:
			w.lost = true
		}
	}
}

func (n *node) info(name string) isolation.FileInfo {
	return isolation.FileInfo{Base: path.Base(name), Bytes: int64(len(n.data)), Bits: n.mode, Modified: n.modified}
}

// filer is a sandbox with its files.
type filer struct {
	isolation.Sandbox
	handle
}

func (f filer) Unwrap() any { return f.Sandbox }

// do calls an operation on the tree of a sandbox that is there.
func (f filer) do(ctx context.Context, op, name string, call func(t *tree, name string) error) error {
	err := context.Cause(ctx)
	if err == nil {
		name, err = clean(name)
	}
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	switch {
	case err != nil:
	case f.s.deleted || !f.s.isHeld(f.d):
		err = isolation.ErrNotFound
	case f.s.lost:
		err = fmt.Errorf("sandbox is lost: %w", isolation.ErrFailedPrecondition)
	default:
		f.s.files.mu.Lock()
		defer f.s.files.mu.Unlock()
		err = call(f.s.files, name)
	}
	if err != nil {
		return f.s.fail(op, "", err)
	}
	return nil
}

// Stat implements isolation.Files.
func (f filer) Stat(ctx context.Context, name string) (info fs.FileInfo, err error) {
	err = f.do(ctx, "stat", name, func(t *tree, name string) error {
		n, err := t.findLocked(name)
		if err == nil {
			info = n.info(name)
		}
		return err
	})
	return info, err
}

// ReadFile implements isolation.Files.
func (f filer) ReadFile(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = f.do(ctx, "read file", name, func(t *tree, name string) error {
		n, err := t.findLocked(name)
		if err == nil && n.mode.IsDir() {
			err = fmt.Errorf("%s is not a regular file: %w", name, isolation.ErrInvalidArgument)
		}
		if err == nil {
			r = io.NopCloser(bytes.NewReader(n.data)) // never changed, only replaced
		}
		return err
	})
	return r, err
}

// WriteFile implements isolation.Files.
func (f filer) WriteFile(ctx context.Context, name string, mode fs.FileMode, r io.Reader) error {
	// What cannot work is refused before r is read.
	check := func(t *tree, name string) error {
		if n := t.nodes[name]; n != nil && n.mode.IsDir() {
			return fmt.Errorf("%s is a directory: %w", name, isolation.ErrInvalidArgument)
		}
		return t.parentLocked(name)
	}
	if err := f.do(ctx, "write file", name, check); err != nil {
		return err
	}
	limit := f.s.spec.Resources.DiskBytes
	var from = r
	if limit > 0 {
		from = io.LimitReader(r, limit+1)
	}
	data, err := io.ReadAll(from)
	if err != nil {
		return f.s.fail("write file", "", err)
	}
	return f.do(ctx, "write file", name, func(t *tree, name string) error {
		if err := check(t, name); err != nil {
			return err
		}
		old := t.nodes[name]
		grown := int64(len(data))
		if old != nil {
			grown -= int64(len(old.data))
		}
		if limit > 0 && f.s.disk+grown > limit {
			return fmt.Errorf("disk limit of %d bytes: %w", limit, isolation.ErrResourceExhausted)
		}
		f.s.disk += grown
		t.nodes[name] = &node{mode.Perm(), data, time.Now()}
		t.tellLocked(isolation.FileEvent{Name: name, Created: old == nil, Written: true})
		return nil
	})
}

func (f filer) remove(ctx context.Context, name string, all bool) error {
	return f.do(ctx, "remove", name, func(t *tree, name string) error {
		if _, err := t.findLocked(name); err != nil {
			return err
		}
		below := t.belowLocked(name)
		switch {
		case name == "/":
			return fmt.Errorf("the root: %w", isolation.ErrInvalidArgument)
		case len(below) > 0 && !all:
			return fmt.Errorf("%s is not empty: %w", name, isolation.ErrFailedPrecondition)
		}
		for _, n := range append(below, name) {
			f.s.disk -= int64(len(t.nodes[n].data))
			delete(t.nodes, n)
			t.tellLocked(isolation.FileEvent{Name: n, Removed: true})
		}
		return nil
	})
}

// Remove implements isolation.Files.
func (f filer) Remove(ctx context.Context, name string) error { return f.remove(ctx, name, false) }

// RemoveAll implements isolation.Directories.
func (f filer) RemoveAll(ctx context.Context, name string) error { return f.remove(ctx, name, true) }

// ReadDir implements isolation.Directories.
func (f filer) ReadDir(ctx context.Context, name string) (list []fs.FileInfo, err error) {
	err = f.do(ctx, "read directory", name, func(t *tree, name string) error {
		n, err := t.findLocked(name)
		if err != nil {
			return err
		}
		if !n.mode.IsDir() {
			return fmt.Errorf("%s is not a directory: %w", name, isolation.ErrNotFound)
		}
		for _, b := range t.belowLocked(name) {
			if path.Dir(b) == name {
				list = append(list, t.nodes[b].info(b))
			}
		}
		return nil
	})
	return list, err
}

// Mkdir implements isolation.Directories.
func (f filer) Mkdir(ctx context.Context, name string, mode fs.FileMode) error {
	return f.do(ctx, "make directory", name, func(t *tree, name string) error {
		var missing []string
		for at := name; ; at = path.Dir(at) {
			n := t.nodes[at]
			if n != nil && n.mode.IsDir() {
				break
			}
			if n != nil {
				return fmt.Errorf("%s is not a directory: %w", at, isolation.ErrAlreadyExists)
			}
			missing = append(missing, at)
		}
		for i, at := range missing {
			m := fs.FileMode(0o755)
			if i == 0 {
				m = mode & (fs.ModePerm | fs.ModeSticky)
			}
			t.nodes[at] = &node{fs.ModeDir | m, nil, time.Now()}
		}
		for i := range missing {
			t.tellLocked(isolation.FileEvent{Name: missing[len(missing)-1-i], Created: true})
		}
		return nil
	})
}

// Rename implements isolation.Directories.
func (f filer) Rename(ctx context.Context, from, to string) error {
	to, err := clean(to)
	if err != nil {
		return f.s.fail("rename", "", err)
	}
	return f.do(ctx, "rename", from, func(t *tree, from string) error {
		n, err := t.findLocked(from)
		if err == nil {
			err = t.parentLocked(to)
		}
		old := t.nodes[to]
		switch {
		case err != nil:
			return err
		case from == "/" || to == "/" || strings.HasPrefix(to, from+"/"):
			return fmt.Errorf("%s cannot become %s: %w", from, to, isolation.ErrInvalidArgument)
		case from == to:
			return nil
		case old != nil && old.mode.IsDir() != n.mode.IsDir():
			return fmt.Errorf("%s and %s are of different kinds: %w", from, to, isolation.ErrInvalidArgument)
		case old != nil && len(t.belowLocked(to)) > 0:
			return fmt.Errorf("%s is not empty: %w", to, isolation.ErrFailedPrecondition)
		}
		if old != nil {
			f.s.disk -= int64(len(old.data))
		}
		for _, b := range append(t.belowLocked(from), from) {
			t.nodes[to+strings.TrimPrefix(b, from)] = t.nodes[b]
			delete(t.nodes, b)
		}
		t.tellLocked(isolation.FileEvent{Name: from, Removed: true})
		t.tellLocked(isolation.FileEvent{Name: to, Created: true})
		return nil
	})
}

// watcher is a sandbox whose files can be watched.
type watcher struct {
	isolation.Sandbox
	handle
}

// Unwrap lets isolation.As find further abilities.
func (w watcher) Unwrap() any { return w.Sandbox }

// maxEvents is how far who watches may lag.
const maxEvents = 64

// Watch implements isolation.Watcher.
func (w watcher) Watch(ctx context.Context, name string, all bool) (<-chan isolation.FileEvent, error) {
	x := &watch{all: all, ch: make(chan isolation.FileEvent, maxEvents)}
	var end <-chan struct{}
	err := filer(w).do(ctx, "watch", name, func(t *tree, name string) error {
		x.name = name
		if _, err := t.findLocked(name); err != nil {
			return err
		}
		t.watches[x] = true
		end = w.s.ctx.Done()
		return nil
	})
	if err != nil {
		return nil, err
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-end:
		}
		t := w.s.files
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.watches, x)
		close(x.ch)
	}()
	return x.ch, nil
}
