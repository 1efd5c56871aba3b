package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/axocoatl/isolation"
)

// Restore makes a sandbox of a snapshot that the engine r.Engine took. The request
// is that which the first sandbox was made by, under a new id: the policy of now is
// held to it, and what is run in it to the policy as in one of Create. The other
// errors are [isolation.Restorer]'s.
func (e *Engine) Restore(ctx context.Context, snapshot string, r Request) (isolation.Sandbox, Decision, error) {
	if err := e.begin(); err != nil {
		return nil, Decision{}, notStarted(r.ID, err)
	}
	defer e.runs.Done()
	sb, d, err := e.restore(ctx, snapshot, r)
	if err != nil {
		return nil, d, notStarted(r.ID, err)
	}
	return sb, d, nil
}

func (e *Engine) restore(ctx context.Context, snapshot string, r Request) (isolation.Sandbox, Decision, error) {
	return e.place(ctx, r, func(ctx context.Context, c candidate, r Request) (isolation.Sandbox, error) {
		restorer, ok := isolation.As[isolation.Restorer](c.driver)
		if !ok {
			return nil, unrestored(c.name)
		}
		return restorer.Restore(ctx, r.ID, snapshot)
	})
}

func unrestored(engine string) error {
	return &isolation.UnsupportedError{Feature: "a snapshot on the engine " + engine, Need: "an engine that has the abilities snapshot and restore"}
}

// RemoveSnapshot removes a snapshot of an engine's. One that is not there is
// NotFound.
func (e *Engine) RemoveSnapshot(ctx context.Context, engine, name string) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.runs.Done()
	i := slices.IndexFunc(e.candidates, func(c candidate) bool { return c.name == engine })
	if i < 0 {
		return fmt.Errorf("no engine %q is in this program: %w", engine, isolation.ErrFailedPrecondition)
	}
	restorer, ok := isolation.As[isolation.Restorer](e.candidates[i].driver)
	if !ok {
		return unrestored(engine)
	}
	return restorer.RemoveSnapshot(ctx, name)
}

// forking holds the policy on what is run in copies, too.
type forking struct {
	isolation.Forker
	s *sandbox
}

// Unwrap lets abilities be found.
func (f forking) Unwrap() any { return f.s.Sandbox }

// Fork implements [isolation.Forker].
func (f forking) Fork(ctx context.Context, ids []string) ([]isolation.Sandbox, error) {
	made, err := f.Forker.Fork(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]isolation.Sandbox, len(made))
	for i, sb := range made {
		c := *f.s
		c.Sandbox = sb
		out[i] = &c
	}
	return out, nil
}
