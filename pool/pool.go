package pool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
)

// Pool is a driver that hands out sandboxes made ahead. It implements
// [isolation.Driver]; make it with New.
type Pool struct {
	cfg    Config
	inner  isolation.Driver
	prefix string // of the inner sandboxes' ids: no caller can guess it

	ctx      context.Context // ends with Close: for what the pool does by itself
	cancel   context.CancelFunc
	wake     chan struct{}  // the keeper has something to do
	work     sync.WaitGroup // the keeper, the makers, Creates; added to before closed
	removals chan struct{}  // one place for each removal under way
	removing sync.WaitGroup // added to under mu and before closed

	mu      sync.Mutex // guards what follows; never held across a call of a driver
	closed  bool
	serial  int
	shelves map[key]*shelf
	out     map[string]*sandbox // handed out, by the caller's id; nil: being made
	stats   Stats
}

var _ isolation.Driver = (*Pool)(nil)

// New makes a pool and begins to fill its templates' shelves. Errors are of
// class InvalidArgument.
func New(c Config) (*Pool, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	p := &Pool{
		cfg: c, inner: c.Driver, prefix: prefix + rand.Text()[:12] + "-", wake: make(chan struct{}, 1),
		removals: make(chan struct{}, c.MaxRemovals), shelves: map[key]*shelf{}, out: map[string]*sandbox{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for _, t := range c.Templates {
		var err error
		name := nameOf(t.Spec)
		if t.Spec, err = p.resolve(p.ctx, t.Spec); err != nil {
			p.cancel()
			return nil, err
		}
		k, ok := c.keyOf(t.Spec)
		if !ok || p.shelves[k] != nil {
			p.cancel()
			return nil, fmt.Errorf("pool: a template's image is named still, or is another's: %w", isolation.ErrInvalidArgument)
		}
		t.Spec = plain(t.Spec)
		p.shelves[k] = &shelf{template: t, fixed: true, name: name}
	}
	p.work.Go(p.keep)
	return p, nil
}

// Name returns the driver's: a pooled engine is the same engine.
func (p *Pool) Name() string { return p.inner.Name() }

// Probe implements isolation.Driver.
func (p *Pool) Probe(ctx context.Context) (isolation.Features, error) { return p.inner.Probe(ctx) }

// Create hands out a sandbox that is ready, or makes one.
func (p *Pool) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	sb, err := p.create(ctx, id, spec)
	if err != nil {
		return nil, p.fail("create", id, isolation.NotStarted, err)
	}
	return sb, nil
}

func (p *Pool) create(ctx context.Context, id string, spec isolation.Spec) (_ *sandbox, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := isolation.ValidateID(id); err != nil {
		return nil, err
	}
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	name := nameOf(spec)
	if spec, err = p.resolve(ctx, spec); err != nil {
		return nil, err
	}
	if err := p.reserve(id); err != nil {
		return nil, err
	}
	defer p.work.Done()
	p.follow(name, spec)
	sb := &sandbox{p: p, id: id, created: time.Now(), theirs: spec.Detached}
	k, alike := p.cfg.keyOf(spec)
	if alike {
		sb.inner, sb.innerID = p.claim(ctx, k, spec)
		sb.ahead = sb.inner != nil
	}
	if sb.inner == nil {
		sb.innerID = p.newID()
		if spec.Detached {
			sb.innerID = id // by which it is found again
		}
		if sb.inner, err = p.inner.Create(ctx, sb.innerID, spec); err != nil {
			p.release(id, nil)
			return nil, renamed(err, sb.innerID, id)
		}
	}
	if alike {
		p.learn(k, spec) // it can be made: worth a shelf
	}
	if err := p.handOut(sb); err != nil {
		// It was not handed out: nobody would know of it, detached or not.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return nil, errors.Join(err, sb.inner.Delete(undo))
	}
	return sb, nil
}

// resolve says what a spec means now.
func (p *Pool) resolve(ctx context.Context, spec isolation.Spec) (isolation.Spec, error) {
	if p.cfg.Resolve == nil || !named(spec) {
		return spec, nil
	}
	return p.cfg.Resolve(ctx, spec)
}

var errClosed = fmt.Errorf("the pool is closed: %w", isolation.ErrFailedPrecondition)

func (p *Pool) reserve(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	if _, taken := p.out[id]; taken {
		return fmt.Errorf("sandbox %s: %w", id, isolation.ErrAlreadyExists)
	}
	p.out[id] = nil
	p.work.Add(1)
	return nil
}

// handOut enters a sandbox under its id, unless the pool was closed meanwhile.
func (p *Pool) handOut(sb *sandbox) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		delete(p.out, sb.id)
		return errClosed
	}
	p.out[sb.id] = sb
	return nil
}

// release frees an id that is sb's.
func (p *Pool) release(id string, sb *sandbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if have, ok := p.out[id]; ok && have == sb {
		delete(p.out, id)
	}
}

func (p *Pool) newID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial++
	return p.prefix + strconv.Itoa(p.serial)
}

// Close deletes every sandbox, those that stand ready and those handed out, and
// closes the driver. It waits for all that the pool does by itself.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	var out []*sandbox
	for _, sb := range p.out {
		if sb != nil && !sb.theirs {
			out = append(out, sb)
		}
	}
	p.mu.Unlock()
	p.cancel()
	p.work.Wait()
	var errs []error
	for _, sb := range out {
		errs = append(errs, sb.Delete(context.Background()))
	}
	errs = append(errs, p.Drain(context.Background()))
	p.removing.Wait()
	return errors.Join(append(errs, p.inner.Close())...)
}

func (p *Pool) fail(op, id string, o isolation.Outcome, err error) error {
	var e *isolation.Error
	if errors.As(err, &e) && e.ID == id {
		return err // the driver's own, which says all of it
	}
	return &isolation.Error{Op: op, Driver: p.Name(), ID: id, Outcome: o, Err: err}
}

// renamed puts the caller's id into an error of the driver.
func renamed(err error, from, to string) error {
	if e, ok := err.(*isolation.Error); ok && e.ID == from { //nolint:errorlint // only the outermost names the sandbox
		c := *e
		c.ID = to
		return &c
	}
	return err
}
