package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// Recovered is a detached sandbox that an earlier process has left, or why it is
// not there any more.
type Recovered struct {
	ID      string
	Tier    isolation.Tier
	Engine  string
	Created time.Time
	// Sandbox is this process's now. nil: Holder or Err says why not.
	Sandbox isolation.Sandbox
	// Holder is another process that has it.
	Holder int
	// Err of class NotFound: it has ended, and nothing of it is left. Else it may
	// live, and a later call may have it.
	Err error
}

// recovering is how many sandboxes are recovered at a time: most of it is waiting.
const recovering = 16

// Recover makes the detached sandboxes that nobody has this process's: those of all
// engines, as they are listed by them. What it has already is not among them. Their
// processes are reached by [isolation.Attacher]. The error says which engines could
// not be asked.
func (e *Engine) Recover(ctx context.Context) ([]Recovered, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.runs.Done()
	var all []Recovered
	var from []isolation.Recoverer // by the index in all
	var errs []error
	for _, c := range e.candidates {
		r, ok := isolation.As[isolation.Recoverer](c.driver)
		if !ok {
			continue
		}
		list, err := r.Recoverable(ctx)
		if err != nil {
			errs = append(errs, err)
		}
		for _, x := range list {
			all = append(all, Recovered{ID: x.ID, Tier: c.tier, Engine: c.name, Created: x.Created, Holder: x.Holder})
			from = append(from, r)
		}
	}
	places := make(chan struct{}, recovering)
	var wg sync.WaitGroup
	for i := range all {
		x := &all[i]
		if x.Holder != 0 {
			continue
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			x.Sandbox, x.Err = from[i].Recover(ctx, x.ID)
		})
	}
	wg.Wait()
	return all, errors.Join(errs...)
}

// Discard ends and removes the detached sandboxes that nobody has and whose ids match,
// such as those that a process made ahead and was killed before it told anybody of
// them. The error says which could not be removed, or not be listed.
func (e *Engine) Discard(ctx context.Context, match func(id string) bool) (discarded []string, err error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.runs.Done()
	for _, c := range e.candidates {
		r, ok := isolation.As[isolation.Recoverer](c.driver)
		d, can := isolation.As[isolation.Discarder](c.driver)
		if !ok || !can {
			continue
		}
		list, lerr := r.Recoverable(ctx)
		err = errors.Join(err, lerr)
		for _, x := range list {
			if x.Holder != 0 || !match(x.ID) {
				continue
			}
			if derr := d.Discard(ctx, x.ID); derr != nil && !errors.Is(derr, isolation.ErrNotFound) {
				err = errors.Join(err, derr)
				continue
			}
			discarded = append(discarded, x.ID)
		}
	}
	return discarded, err
}

// RecoveryID is the id by which [Engine.RecoverOne] finds a detached sandbox: that
// of one which was made ahead is not its caller's.
func RecoveryID(sb isolation.Sandbox) string {
	if x, ok := isolation.As[interface{ RecoveryID() string }](sb); ok {
		return x.RecoveryID()
	}
	return sb.ID()
}
