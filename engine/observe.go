package engine

import (
	"context"

	"github.com/axocoatl/isolation"
)

// Observer is told of the steps of runs, and of the making of sandboxes that stay, as
// they begin and end: to measure them, and to tell where time went. Nothing that it
// does changes a run. It is called from the run's goroutine, so it must be quick, and
// safe for concurrent use.
type Observer interface {
	// Begin returns the context that the step is done with, and what is called once
	// when it has ended.
	Begin(ctx context.Context, s Step) (context.Context, func(StepEnd))
}

// Step is a part of a run.
type Step struct {
	Name   StepName
	RunID  string // of the run, or the sandbox
	Tenant string // the Spec's
	// Tier and Engine are those that were chosen; Engine is empty before.
	Tier   isolation.Tier
	Engine string
}

// StepEnd is how a step ended.
type StepEnd struct {
	Err error
	// MadeAhead: the sandbox of this StepCreate stood ready.
	MadeAhead bool
	// Exit is the program's, of a StepExec that has seen its end. What of the step's
	// time is not Exit.Usage.Wall was spent on the last of its output.
	Exit *isolation.Exit
}

// StepName names a step.
type StepName string

// The steps, in their order.
const (
	StepAdmit   StepName = "admit"    // the wait for one of Config.MaxRuns
	StepDecide  StepName = "decide"   // probes, and the choice of an engine
	StepCreate  StepName = "create"   // the sandbox, with its network
	StepCopyIn  StepName = "copy_in"  // where there is something to copy
	StepStart   StepName = "start"    // the program
	StepExec    StepName = "exec"     // from its start until its end is known, with its output
	StepCopyOut StepName = "copy_out" // where there is something to copy
	StepDelete  StepName = "delete"   // the sandbox
)

// Steps are all names, in their order.
func Steps() []StepName {
	return []StepName{StepAdmit, StepDecide, StepCreate, StepCopyIn, StepStart, StepExec, StepCopyOut, StepDelete}
}

// step begins a step of r in the engine of d, if one was chosen.
func (e *Engine) step(ctx context.Context, name StepName, r Request, d Decision) (context.Context, func(StepEnd)) {
	if e.config.Observer == nil {
		return ctx, func(StepEnd) {}
	}
	return e.config.Observer.Begin(ctx, Step{Name: name, RunID: r.ID, Tenant: r.Spec.Tenant, Tier: d.Got, Engine: d.Engine})
}

// enter waits for a place, as a step.
func (e *Engine) enter(ctx context.Context, p Policy, r Request) error {
	ctx, done := e.step(ctx, StepAdmit, r, Decision{})
	err := e.admission.enter(ctx, p.Admission)
	done(StepEnd{Err: err})
	return err
}

// decide chooses, as a step.
func (e *Engine) decide(ctx context.Context, p Policy, r Request, asked []isolation.Limit) (Decision, candidate, error) {
	ctx, done := e.step(ctx, StepDecide, r, Decision{})
	d, c, err := choose(ctx, p, e.candidates, r, asked, e.probes.features)
	done(StepEnd{Err: err})
	return d, c, err
}

// make has a sandbox made, with its network, as a step.
func (e *Engine) make(ctx context.Context, p Policy, r Request, d Decision, make func(context.Context) (isolation.Sandbox, error)) (isolation.Sandbox, error) {
	ctx, done := e.step(ctx, StepCreate, r, d)
	sb, err := make(ctx)
	if err == nil {
		sb, err = e.withEgress(ctx, p, sb, r)
	}
	end := StepEnd{Err: err}
	if pooled, ok := isolation.As[interface{ MadeAhead() bool }](sb); err == nil && ok {
		end.MadeAhead = pooled.MadeAhead()
	}
	done(end)
	return sb, err
}
