package microvm

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/axocoatl/isolation/driver/internal/proc"
)

// maxRaised is how many copies of a machine are started at a time.
const maxRaised = 4

// copyable is a machine that can be copied while it lives.
type copyable struct {
	*machine
	live living // its vm
}

// place is the machine with the abilities that it has.
func (m *machine) place() proc.Place {
	if l, ok := m.vm.(living); ok {
		return copyable{m, l}
	}
	return m
}

// Fork implements [proc.Forker].
func (m copyable) Fork(ctx context.Context, ids []string, what func() proc.Held) ([]proc.Place, error) {
	l, err := m.capture(ctx, what)
	if err != nil {
		return nil, err
	}
	defer l.close()
	copies := make([]*machine, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxRaised)
	for i, id := range ids {
		g.Go(func() (err error) {
			copies[i], err = m.eng.raise(gctx, id, m.spec, l)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		for _, c := range copies {
			if c != nil {
				err = errors.Join(err, c.Remove(undo))
			}
		}
		return nil, err
	}
	places := make([]proc.Place, len(ids))
	for i, c := range copies {
		places[i] = c.place()
	}
	return places, nil
}
