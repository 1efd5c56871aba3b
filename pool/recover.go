package pool

import (
	"context"

	"github.com/axocoatl/isolation"
)

// recovering finds the driver's detached sandboxes, which have the caller's ids
// there, too.
type recovering struct {
	inner any
	isolation.Recoverer
	p *Pool
}

// Unwrap lets isolation.As find the driver's other abilities.
func (r recovering) Unwrap() any { return r.inner }

// Recover implements [isolation.Recoverer].
func (r recovering) Recover(ctx context.Context, id string) (isolation.Sandbox, error) {
	sb, err := r.recover(ctx, id)
	if err != nil {
		return nil, r.p.fail("recover", id, "", err)
	}
	return sb, nil
}

func (r recovering) recover(ctx context.Context, id string) (*sandbox, error) {
	if err := r.p.reserve(id); err != nil {
		return nil, err
	}
	defer r.p.work.Done()
	sb := &sandbox{p: r.p, id: id, innerID: id, theirs: true}
	var err error
	if sb.inner, err = r.Recoverer.Recover(ctx, id); err != nil {
		r.p.release(id, nil)
		return nil, err
	}
	if st, err := sb.inner.State(ctx); err == nil {
		sb.created = st.Created
	}
	// If the pool was closed meanwhile, closing the driver lets it go again.
	if err := r.p.handOut(sb); err != nil {
		return nil, err
	}
	return sb, nil
}
