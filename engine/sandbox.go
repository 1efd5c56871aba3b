package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/axocoatl/isolation"
)

// Create makes a sandbox for many programs in the engine that Explain names, and
// leaves its life to the caller. Of the request Process, Capture, copies and
// streams have no part in it: they are each program's. The sandbox holds the
// policy on those: their limits are filled in and bounded as a run's are, and one
// that its engine cannot enforce is refused unless the request allows that.
//
// A sandbox whose Spec is Detached outlives the engine; see Recover. Others go
// with Close.
func (e *Engine) Create(ctx context.Context, r Request) (isolation.Sandbox, Decision, error) {
	if err := e.begin(); err != nil {
		return nil, Decision{}, notStarted(r.ID, err)
	}
	defer e.runs.Done()
	sb, d, err := e.create(ctx, r)
	if err != nil {
		return nil, d, notStarted(r.ID, err)
	}
	return sb, d, nil
}

func (e *Engine) create(ctx context.Context, r Request) (isolation.Sandbox, Decision, error) {
	if err := r.Spec.Validate(); err != nil {
		return nil, Decision{}, err
	}
	var err error
	if r.ID, err = e.completeID(r.ID); err != nil {
		return nil, Decision{}, err
	}
	return e.place(ctx, r, func(ctx context.Context, c candidate, r Request) (isolation.Sandbox, error) {
		return c.driver.Create(ctx, r.ID, r.Spec)
	})
}

// place chooses an engine for a sandbox that stays, and has it made there, with what the
// policy makes of the request.
func (e *Engine) place(ctx context.Context, r Request, make func(context.Context, candidate, Request) (isolation.Sandbox, error)) (isolation.Sandbox, Decision, error) {
	r.Process = isolation.ProcessSpec{}
	asked := isolation.LimitsOf(r.Spec, r.Process)
	p, err := e.policyFor(r)
	if err != nil {
		return nil, Decision{}, err
	}
	if r.Spec.Resources, err = p.resources(r.Spec.Resources); err != nil {
		return nil, Decision{}, err
	}
	if _, _, err := p.egressRules(r.Egress); err != nil {
		return nil, Decision{}, err
	}
	if err := e.enter(ctx, p, r); err != nil {
		return nil, Decision{}, err
	}
	defer e.admission.leave()
	d, c, err := e.decide(ctx, p, r, asked)
	if err != nil {
		return nil, d, err
	}
	f, err := e.probes.features(ctx, c)
	if err != nil {
		return nil, d, err
	}
	sb, err := e.make(ctx, p, r, d, func(ctx context.Context) (isolation.Sandbox, error) { return make(ctx, c, r) })
	if err != nil {
		return nil, d, err
	}
	return &sandbox{sb, p, f, r.Spec, r.AllowUnenforced}, d, nil
}

// RecoverOne is Recover for a sandbox that the caller knows of: one that an engine
// of this name made, or any engine if none is named. The request is the one that
// it was made by: what is run in it is held to the policy as then. NotFound: it does not live any more, and nothing is left of it. The
// other errors are [isolation.Recoverer]'s.
func (e *Engine) RecoverOne(ctx context.Context, engine string, r Request) (isolation.Sandbox, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.runs.Done()
	if engine == "" {
		return e.recoverAny(ctx, r)
	}
	i := slices.IndexFunc(e.candidates, func(c candidate) bool { return c.name == engine })
	if i < 0 {
		return nil, fmt.Errorf("no engine %q is in this program: %w", engine, isolation.ErrFailedPrecondition)
	}
	return e.recoverFrom(ctx, e.candidates[i], r)
}

func (e *Engine) recoverAny(ctx context.Context, r Request) (isolation.Sandbox, error) {
	for _, c := range e.candidates {
		if _, ok := isolation.As[isolation.Recoverer](c.driver); !ok {
			continue
		}
		if sb, err := e.recoverFrom(ctx, c, r); !errors.Is(err, isolation.ErrNotFound) {
			return sb, err
		}
	}
	return nil, fmt.Errorf("no engine has a sandbox %s: %w", r.ID, isolation.ErrNotFound)
}

func (e *Engine) recoverFrom(ctx context.Context, c candidate, r Request) (isolation.Sandbox, error) {
	rec, ok := isolation.As[isolation.Recoverer](c.driver)
	if !ok {
		return nil, &isolation.UnsupportedError{Feature: "to find a sandbox of " + c.name + " again"}
	}
	f, err := e.probes.features(ctx, c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("engine %s does not work any more: %w", c.name, isolation.ErrUnavailable), err)
	}
	sb, err := rec.Recover(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	// A rule that refuses such a sandbox by now does not take from it what it is: its
	// programs are held to the strictest that is known, the policy without rules.
	p, err := e.policyFor(r)
	if err != nil {
		p = e.config.Policy
		p.Egress = nil
	}
	// What the policy does not grant any more it has not any more; it lives on.
	if n, nerr := e.connect(ctx, p, sb, r); nerr != nil {
		e.config.Logger.Warn("a sandbox goes on without a network", "tenant", r.Spec.Tenant, "sandbox", r.ID, "error", nerr)
	} else if n != nil {
		sb = proxied{sb, n}
	}
	return &sandbox{sb, p, f, r.Spec, r.AllowUnenforced}, nil
}

// sandbox holds the policy on what is run in it.
type sandbox struct {
	isolation.Sandbox
	policy          Policy
	features        isolation.Features
	spec            isolation.Spec
	allowUnenforced bool
}

// Unwrap lets abilities be found.
func (s *sandbox) Unwrap() any {
	if f, ok := isolation.As[isolation.Forker](s.Sandbox); ok {
		return forking{f, s}
	}
	return s.Sandbox
}

// Exec implements isolation.Sandbox.
func (s *sandbox) Exec(ctx context.Context, p isolation.ProcessSpec, stdio isolation.Stdio) (isolation.Process, error) {
	if err := s.spec.ValidateProcess(p); err != nil {
		return nil, notStarted(p.ExecID, err)
	}
	for _, l := range isolation.LimitsOf(isolation.Spec{}, p) {
		if e := s.features.Enforcement(l); !e.Enforced && !s.allowUnenforced {
			return nil, notStarted(p.ExecID, &isolation.UnsupportedError{Feature: fmt.Sprintf("the limit %s on %s", l, s.features.Engine), Need: e.Reason})
		}
	}
	var err error
	if p.Limits, err = s.policy.limits(p.Limits); err != nil {
		return nil, notStarted(p.ExecID, err)
	}
	for _, l := range isolation.LimitsOf(isolation.Spec{}, isolation.ProcessSpec{Limits: s.policy.MaxLimits}) {
		if e := s.features.Enforcement(l); !e.Enforced {
			return nil, notStarted(p.ExecID, &isolation.UnsupportedError{Feature: fmt.Sprintf("the limit %s, which the policy sets, on %s", l, s.features.Engine), Need: e.Reason})
		}
	}
	return s.Sandbox.Exec(ctx, p, stdio)
}
