package mem

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
)

// saved is a sandbox without processes: a goroutine cannot be copied.
type saved struct {
	spec  isolation.Spec
	next  int
	nodes map[string]*node
	taken time.Time
}

// save copies what a sandbox has.
func (s *sandbox) save(ctx context.Context) (*saved, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.deleted:
		return nil, isolation.ErrNotFound
	case s.lost:
		return nil, fmt.Errorf("sandbox is lost: %w", isolation.ErrFailedPrecondition)
	case s.tasks > 0:
		return nil, &isolation.UnsupportedError{Feature: "a copy of running processes"}
	}
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	return &saved{s.spec, s.next, copyNodes(s.files.nodes), time.Now()}, nil
}

// copyNodes copies the nodes; what a file has is replaced when it changes, never
// changed.
func copyNodes(nodes map[string]*node) map[string]*node {
	out := maps.Clone(nodes)
	for name, n := range out {
		c := *n
		c.data = slices.Clone(n.data)
		out[name] = &c
	}
	return out
}

// revive makes sandboxes of what was saved: all of them or none.
func (d *Driver) revive(ids []string, from *saved) (out []isolation.Sandbox, err error) {
	began := time.Now()
	var made []*sandbox
	defer func() {
		for _, s := range made {
			if err != nil {
				s.cancel()
				d.host.remove(s)
				d.forget(s.id, s)
			}
		}
	}()
	for _, id := range ids {
		if err := isolation.ValidateID(id); err != nil {
			return nil, err
		}
		if err := d.reserve(id); err != nil {
			return nil, err
		}
		s := newSandbox(d, id, from.spec, began)
		s.next, s.files.nodes = from.next, copyNodes(from.nodes)
		if from.spec.Detached {
			err = d.host.add(s)
		}
		if err == nil {
			err = d.enter(s)
		}
		if err != nil {
			s.cancel()
			d.host.remove(s)
			d.forget(id, nil)
			return nil, err
		}
		made = append(made, s)
		out = append(out, s.wear(d))
	}
	return out, nil
}

type snapshotter struct {
	isolation.Sandbox
	handle
}

func (w snapshotter) Unwrap() any { return w.Sandbox }

// Snapshot implements isolation.Snapshotter.
func (w snapshotter) Snapshot(ctx context.Context, name string) error {
	if err := w.held("snapshot", ""); err != nil {
		return err
	}
	err := isolation.ValidateID(name)
	if err == nil {
		var x *saved
		if x, err = w.s.save(ctx); err == nil {
			err = w.d.host.keep(name, x)
		}
	}
	if err != nil {
		return w.s.fail("snapshot", "", err)
	}
	return nil
}

func (h *Host) keep(name string, x *saved) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.snapshots[name] != nil {
		return fmt.Errorf("snapshot %s: %w", name, isolation.ErrAlreadyExists)
	}
	h.snapshots[name] = x
	return nil
}

type forker struct {
	isolation.Sandbox
	handle
}

func (w forker) Unwrap() any { return w.Sandbox }

// Fork implements isolation.Forker.
func (w forker) Fork(ctx context.Context, ids []string) ([]isolation.Sandbox, error) {
	if err := w.held("fork", isolation.NotStarted); err != nil {
		return nil, err
	}
	x, err := w.s.save(ctx)
	if err == nil && len(ids) == 0 {
		err = fmt.Errorf("no ids: %w", isolation.ErrInvalidArgument)
	}
	var out []isolation.Sandbox
	if err == nil {
		out, err = w.d.revive(ids, x)
	}
	if err != nil {
		return nil, w.s.fail("fork", isolation.NotStarted, err)
	}
	return out, nil
}

// restoring is a driver that restores snapshots.
type restoring struct {
	d     *Driver
	inner any
}

func (r restoring) Unwrap() any { return r.inner }

// Restore implements isolation.Restorer.
func (r restoring) Restore(ctx context.Context, id, snapshot string) (isolation.Sandbox, error) {
	err := context.Cause(ctx)
	var out []isolation.Sandbox
	if err == nil {
		r.d.host.mu.Lock()
		x := r.d.host.snapshots[snapshot]
		r.d.host.mu.Unlock()
		if x == nil {
			err = fmt.Errorf("snapshot %.80q: %w", snapshot, isolation.ErrNotFound)
		} else {
			out, err = r.d.revive([]string{id}, x)
		}
	}
	if err != nil {
		return nil, &isolation.Error{Op: "restore", Driver: r.d.name, ID: id, Outcome: isolation.NotStarted, Err: err}
	}
	return out[0], nil
}

// Snapshots implements isolation.Restorer.
func (r restoring) Snapshots(ctx context.Context) (out []isolation.SnapshotInfo, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, &isolation.Error{Op: "list", Driver: r.d.name, Err: err}
	}
	h := r.d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, x := range h.snapshots {
		info := isolation.SnapshotInfo{Name: name, Taken: x.taken, Spec: x.spec}
		for _, n := range x.nodes {
			info.Bytes += int64(len(n.data))
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b isolation.SnapshotInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// RemoveSnapshot implements isolation.Restorer.
func (r restoring) RemoveSnapshot(ctx context.Context, name string) error {
	err := context.Cause(ctx)
	if err == nil {
		h := r.d.host
		h.mu.Lock()
		if h.snapshots[name] == nil {
			err = fmt.Errorf("snapshot %.80q: %w", name, isolation.ErrNotFound)
		}
		delete(h.snapshots, name)
		h.mu.Unlock()
	}
	if err != nil {
		return &isolation.Error{Op: "remove snapshot", Driver: r.d.name, Err: err}
	}
	return nil
}
