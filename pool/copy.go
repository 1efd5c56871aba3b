package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/axocoatl/isolation"
)

// Unwrap lets isolation.As find the driver's abilities. What makes further
// sandboxes gives them the caller's ids here too.
func (p *Pool) Unwrap() any {
	var v any = p.inner
	if r, ok := isolation.As[isolation.Restorer](p.inner); ok {
		v = restoring{v, r, p}
	}
	if r, ok := isolation.As[isolation.Recoverer](p.inner); ok {
		v = recovering{v, r, p}
	}
	return v
}

type restoring struct {
	inner any
	isolation.Restorer
	p *Pool
}

func (r restoring) Unwrap() any { return r.inner }

// Restore implements [isolation.Restorer].
func (r restoring) Restore(ctx context.Context, id, snapshot string) (isolation.Sandbox, error) {
	all, err := r.p.more([]string{id}, func() ([]isolation.Sandbox, error) {
		sb, err := r.Restorer.Restore(ctx, id, snapshot)
		return []isolation.Sandbox{sb}, err
	})
	if err != nil {
		return nil, r.p.fail("restore", id, isolation.NotStarted, err)
	}
	return all[0], nil
}

// Unwrap lets isolation.As find the driver's abilities.
func (s *sandbox) Unwrap() any {
	if f, ok := isolation.As[isolation.Forker](s.inner); ok {
		return forking{f, s}
	}
	return s.inner
}

type forking struct {
	inner isolation.Forker
	s     *sandbox
}

func (f forking) Unwrap() any { return f.s.inner }

// Fork implements [isolation.Forker].
func (f forking) Fork(ctx context.Context, ids []string) ([]isolation.Sandbox, error) {
	all, err := f.s.p.more(ids, func() ([]isolation.Sandbox, error) { return f.inner.Fork(ctx, ids) })
	if err != nil {
		return nil, f.s.p.fail("fork", f.s.id, isolation.NotStarted, renamed(err, f.s.innerID, f.s.id))
	}
	return all, nil
}

// more hands out sandboxes that come from elsewhere than a shelf. They have the
// caller's ids with the driver too: they may be detached.
func (p *Pool) more(ids []string, make func() ([]isolation.Sandbox, error)) (_ []isolation.Sandbox, err error) {
	var all []*sandbox
	defer func() {
		for _, sb := range all {
			if err != nil {
				p.release(sb.id, nil)
			}
			p.work.Done()
		}
	}()
	for _, id := range ids {
		if err := isolation.ValidateID(id); err != nil {
			return nil, err
		}
		if err := p.reserve(id); err != nil {
			return nil, err
		}
		all = append(all, &sandbox{p: p, id: id, innerID: id, created: time.Now(), theirs: true})
	}
	made, err := make()
	if err != nil {
		return nil, err
	}
	if len(made) != len(all) {
		return nil, fmt.Errorf("the driver made %d sandboxes of %d", len(made), len(all))
	}
	out := []isolation.Sandbox{}
	for i, sb := range all {
		sb.inner = made[i]
		out = append(out, sb)
		err = errors.Join(err, p.handOut(sb))
	}
	if err != nil { // the pool was closed meanwhile
		undo, cancel := context.WithTimeout(context.Background(), removeTimeout)
		defer cancel()
		for i, sb := range all {
			err = errors.Join(err, made[i].Delete(undo))
			p.release(sb.id, sb)
		}
		return nil, err
	}
	return out, nil
}
