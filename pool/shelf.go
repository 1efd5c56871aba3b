package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/axocoatl/isolation"
)

// shelf holds sandboxes that are alike. Guarded by Pool.mu.
type shelf struct {
	template Template
	fixed    bool    // by configuration; else learned
	name     string  // of the template, if its image was told by a name
	idle     []ready // oldest first
	making   int
	failures int       // in a row
	retry    time.Time // not before
	rest     time.Time // not before, unless none is ready; see Config.RefillAfter
	used     time.Time // last asked for
	err      error     // of the last failure
}

// ready is a sandbox that nobody has yet.
type ready struct {
	sandbox isolation.Sandbox
	id      string
	born    time.Time
	frozen  bool
}

// claim takes a sandbox from its shelf; nil when none is ready.
func (p *Pool) claim(ctx context.Context, k key, spec isolation.Spec) (isolation.Sandbox, string) {
	for {
		r, ok := p.take(k)
		if !ok {
			return nil, ""
		}
		err := r.wake(ctx)
		if err == nil {
			return r.sandbox, r.id
		}
		if ctx.Err() != nil { // it is as good as it was
			p.put(k, r)
			return nil, ""
		}
		p.count(func(s *Stats) { s.Hits--; s.Spoiled++ })
		p.cfg.Logger.Warn("a sandbox that stood ready cannot be used", "requirement", spec.Requirement, "error", err)
		p.remove(r.sandbox)
	}
}

func (p *Pool) take(k key) (ready, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelves[k]
	if s == nil {
		p.stats.Misses++
		return ready{}, false
	}
	s.used = time.Now()
	p.nudge()
	if len(s.idle) == 0 {
		p.stats.Misses++
		return ready{}, false
	}
	// The youngest: its memory is the likeliest to be in the caches.
	r := s.idle[len(s.idle)-1]
	s.idle = s.idle[:len(s.idle)-1]
	p.stats.Hits++
	s.rest = s.used.Add(p.cfg.RefillAfter)
	return r, true
}

// put takes back what take gave and nobody has used.
func (p *Pool) put(k key, r ready) {
	p.mu.Lock()
	s := p.shelves[k]
	p.stats.Hits--
	if s != nil && !p.closed {
		s.idle = append(s.idle, r)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.remove(r.sandbox)
}

// wake makes a sandbox usable, and finds out whether it is.
func (r *ready) wake(ctx context.Context) error {
	if r.frozen {
		pauser, ok := isolation.As[isolation.Pauser](r.sandbox)
		if !ok {
			return errors.New("it cannot be resumed")
		}
		if err := pauser.Resume(ctx); err != nil {
			return err
		}
		r.frozen = false
	}
	st, err := r.sandbox.State(ctx)
	if err == nil && st.Status != isolation.StatusCreated && st.Status != isolation.StatusRunning {
		err = fmt.Errorf("it is %s", st.Status)
	}
	return err
}

// follow moves a template whose image is told by a name to the image that the name
// has come to mean. What stands ready of the old one goes: nobody would get it.
func (p *Pool) follow(name string, now isolation.Spec) {
	k, ok := p.cfg.keyOf(now)
	if name == "" || !ok {
		return
	}
	p.mu.Lock()
	var old []ready
	for from, s := range p.shelves {
		if s.name != name || from == k || p.closed {
			continue
		}
		t := s.template
		t.Spec = plain(now)
		old = p.dropLocked(from)
		there := p.shelves[k]
		if there != nil && !there.fixed {
			old = append(old, p.dropLocked(k)...)
		}
		if there == nil || !there.fixed {
			p.shelves[k] = &shelf{template: t, fixed: true, name: name}
		}
		p.nudge()
		break
	}
	p.mu.Unlock()
	for _, r := range old {
		p.remove(r.sandbox)
	}
}

// learn makes a shelf for a kind that was asked for.
func (p *Pool) learn(k key, spec isolation.Spec) {
	if p.cfg.Learn == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.shelves[k] != nil {
		return
	}
	t := Template{Spec: plain(spec), Size: p.cfg.Learn, Warm: p.cfg.LearnWarm}
	if spec.Requirement == isolation.Python {
		t.Prepare = "python"
	}
	p.shelves[k] = &shelf{template: t, used: time.Now()}
	p.nudge()
}

// nudge makes the keeper look. Called with or without mu.
func (p *Pool) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// keep fills the shelves and clears them of what is old, until Close.
func (p *Pool) keep() {
	for {
		old, next := p.tend(time.Now())
		for _, r := range old {
			p.remove(r.sandbox)
		}
		timer := time.NewTimer(next)
		select {
		case <-p.wake:
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// tend starts what makers can make now. It returns what has to go, and when to
// look again at the latest.
func (p *Pool) tend(now time.Time) (old []ready, next time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next = p.cfg.MaxAge
	soon := func(t time.Time) { next = min(next, max(t.Sub(now), time.Millisecond)) }
	old = p.clearLocked(now, soon)
	idle, making := p.totalsLocked()
	for _, s := range p.byNeedLocked() {
		for len(s.idle)+s.making < s.template.Size && making < p.cfg.Makers && idle+making < p.cfg.MaxIdle {
			if from := s.from(); now.Before(from) {
				soon(from)
				break
			}
			s.making++
			making++
			p.work.Go(func() { p.make(s) })
		}
	}
	return old, next
}

// from is when the shelf may be filled.
func (s *shelf) from() time.Time {
	if len(s.idle) > 0 && s.rest.After(s.retry) {
		return s.rest
	}
	return s.retry
}

// clearLocked takes off the shelves what is too old, and learned shelves that
// nobody asks for or that are too many.
func (p *Pool) clearLocked(now time.Time, soon func(time.Time)) (old []ready) {
	var learned []key
	for k, s := range p.shelves {
		if !s.fixed && now.Sub(s.used) >= p.cfg.Forget {
			old = append(old, p.dropLocked(k)...)
			continue
		}
		if !s.fixed {
			learned = append(learned, k)
			soon(s.used.Add(p.cfg.Forget))
		}
		n := 0
		for n < len(s.idle) && now.Sub(s.idle[n].born) >= p.cfg.MaxAge {
			n++
		}
		p.stats.Aged += int64(n)
		old = append(old, s.idle[:n]...)
		s.idle = slices.Clone(s.idle[n:])
		if len(s.idle) > 0 {
			soon(s.idle[0].born.Add(p.cfg.MaxAge))
		}
	}
	if n := len(learned) - p.cfg.MaxShelves; n > 0 {
		slices.SortFunc(learned, func(a, b key) int { return p.shelves[a].used.Compare(p.shelves[b].used) })
		for _, k := range learned[:n] {
			old = append(old, p.dropLocked(k)...)
		}
	}
	return old
}

func (p *Pool) dropLocked(k key) []ready {
	s := p.shelves[k]
	delete(p.shelves, k)
	idle := s.idle
	s.idle, s.template.Size = nil, 0 // one that is being made finds no place
	return idle
}

// byNeedLocked lists the shelves, those with the least ready first.
func (p *Pool) byNeedLocked() []*shelf {
	all := make([]*shelf, 0, len(p.shelves))
	for _, s := range p.shelves {
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b *shelf) int {
		return (len(a.idle)+a.making)*b.template.Size - (len(b.idle)+b.making)*a.template.Size
	})
	return all
}

func (p *Pool) totalsLocked() (idle, making int) {
	for _, s := range p.shelves {
		idle += len(s.idle)
		making += s.making
	}
	return idle, making
}

// make makes one sandbox for a shelf.
func (p *Pool) make(s *shelf) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.MakeTimeout)
	defer cancel()
	began := time.Now()
	r, err := p.prepare(ctx, s.template, s.fixed)
	p.mu.Lock()
	s.making--
	place := err == nil && !p.closed && len(s.idle) < s.template.Size
	switch {
	case err == nil:
		p.stats.Made++
		p.stats.MakeTime += time.Since(began)
		s.failures, s.err = 0, nil
	case p.ctx.Err() == nil:
		p.stats.Failures++
		s.failures++
		s.err = err
		s.retry = time.Now().Add(backOff(s.failures))
	}
	if place {
		s.idle = append(s.idle, r)
	}
	p.nudge()
	p.mu.Unlock()
	if err != nil && p.ctx.Err() == nil {
		p.cfg.Logger.Warn("no sandbox could be made ahead", "requirement", s.template.Spec.Requirement, "error", err)
	}
	if err == nil && !place {
		p.remove(r.sandbox)
	}
}

const (
	firstBackOff = 100 * time.Millisecond
	lastBackOff  = 30 * time.Second
)

func backOff(failures int) time.Duration {
	return min(firstBackOff<<min(failures-1, 16), lastBackOff)
}

// prepare makes and warms a sandbox. On an error nothing of it is left. Where
// nobody ordered a warm-up or an interpreter, a sandbox without will do.
func (p *Pool) prepare(ctx context.Context, t Template, ordered bool) (_ ready, err error) {
	r := ready{id: p.newID()}
	if r.sandbox, err = p.inner.Create(ctx, r.id, t.Spec); err != nil {
		return r, err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
			defer cancel()
			err = errors.Join(err, r.sandbox.Delete(undo))
		}
	}()
	for _, w := range t.Warm {
		err := warm(ctx, r.sandbox, w)
		if !ordered && dispensable(err) {
			break
		}
		if err != nil {
			return r, fmt.Errorf("warm up with %.100q: %w", w.Args, err)
		}
	}
	if t.Prepare != "" {
		err := startInterpreter(ctx, r.sandbox, t.Prepare)
		if err != nil && (ordered || !errors.Is(err, isolation.ErrUnsupported) && !errors.Is(err, isolation.ErrNotFound)) {
			return r, err
		}
	}
	if p.cfg.Freeze {
		pauser, ok := isolation.As[isolation.Pauser](r.sandbox)
		if !ok {
			return r, &isolation.UnsupportedError{Feature: "freezing what stands ready", Need: "a driver whose sandboxes can be paused"}
		}
		if err := pauser.Pause(ctx); err != nil {
			return r, err
		}
		r.frozen = true
	}
	r.born = time.Now()
	return r, nil
}

// errFailed is of a program that ran, and did not succeed.
var errFailed = errors.New("it fails")

// warm runs a program to its end.
func warm(ctx context.Context, sb isolation.Sandbox, w isolation.ProcessSpec) error {
	pr, err := sb.Exec(ctx, w, isolation.Stdio{})
	if err != nil {
		return err
	}
	exit, err := pr.Wait(ctx)
	switch {
	case err != nil:
		return err
	case exit.Reason == isolation.ReasonSandboxLost:
		return errors.New(exit.String())
	case !exit.Success():
		return fmt.Errorf("%w: %s", errFailed, exit)
	}
	return nil
}

// dispensable reports whether a warm-up that nobody ordered failed for what it runs,
// and not for the sandbox that it runs in.
func dispensable(err error) bool {
	for _, e := range []error{errFailed, isolation.ErrNotFound, isolation.ErrPermissionDenied, isolation.ErrInvalidArgument} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func startInterpreter(ctx context.Context, sb isolation.Sandbox, language string) error {
	p, ok := isolation.As[isolation.Preparer](sb)
	if !ok {
		return &isolation.UnsupportedError{Feature: "an interpreter started ahead", Need: "a driver that has the ability prepare"}
	}
	return p.Prepare(ctx, language)
}

// Drain removes all that stands ready, for example because an image or an
// interpreter was replaced. The shelves are filled again unless the pool is
// closed.
func (p *Pool) Drain(ctx context.Context) error {
	p.mu.Lock()
	var old []ready
	for _, s := range p.shelves {
		old = append(old, s.idle...)
		s.idle = nil
	}
	p.nudge()
	p.mu.Unlock()
	errs := make([]error, len(old))
	for i, r := range old {
		errs[i] = r.sandbox.Delete(ctx)
	}
	return errors.Join(errs...)
}
