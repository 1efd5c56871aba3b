package server

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/admission"
	"github.com/axocoatl/isolation/axo/build"
	"github.com/axocoatl/isolation/axo/server/rest"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/engine"
)

// Admission bounds what is begun at once, of all tenants together. Zero is what the
// comments say.
type Admission struct {
	Starts int           // sandboxes that are being made; 64
	Runs   int           // runs under way; 256
	Queue  int           // those who wait for each; 1024
	Wait   time.Duration // how long, at most; 30 s
	// Memory is what sandboxes and runs may have together by their limits; 0: no bound.
	Memory int64
}

// admitted is an engine that begins what a tenant wants when it is the tenant's turn.
type admitted struct {
	*engine.Engine
	t            *telemetry.Telemetry
	rate         *admission.Rate
	starts, runs *admission.Queue
	memory       *admission.Memory
	images       rest.Images
	built        *build.Templates
}

// own refuses an image that another tenant has built, or a layer that is kept for it, as
// if it were not there.
func (a *admitted) own(r engine.Request) error {
	ref := r.Spec.Root.Image
	if ref == "" || a.images == nil {
		return nil
	}
	tenant, _, _ := strings.Cut(r.Spec.Tenant, "/")
	img, err := a.images.Get(ref) // if it is not there the engine says so
	if err == nil && build.Private(img) && (a.built == nil || !a.built.Owns(tenant, img.Digest)) {
		return fmt.Errorf("no image %.150q here: %w", ref, isolation.ErrNotFound)
	}
	return nil
}

func admit(e *engine.Engine, a Admission, quota func(tenant string) session.Quota, t *telemetry.Telemetry) *admitted {
	queue := func(what string, slots int) *admission.Queue {
		return admission.NewQueue(admission.QueueConfig{What: what, Slots: slots, Bound: cmp.Or(a.Queue, 1024), Wait: cmp.Or(a.Wait, 30*time.Second)})
	}
	var memory *admission.Memory
	if a.Memory > 0 {
		memory = admission.NewMemory(a.Memory, cmp.Or(a.Queue, 1024), cmp.Or(a.Wait, 30*time.Second))
	}
	return &admitted{
		Engine: e, t: t, memory: memory, starts: queue("sandboxes being made", cmp.Or(a.Starts, 64)), runs: queue("runs", cmp.Or(a.Runs, 256)),
		rate: admission.NewRate(func(tenant string) (float64, int) {
			if quota == nil {
				return 0, 0
			}
			q := quota(tenant)
			return q.Rate, q.Burst
		}, nil),
	}
}

// enter waits for the turn of whose request it is.
func (a *admitted) enter(ctx context.Context, q *admission.Queue, op string, r engine.Request) (leave func(), err error) {
	tenant, _, _ := strings.Cut(r.Spec.Tenant, "/") // what comes after it is whom the tenant tells apart
	name := "starts"
	if q == a.runs {
		name = "runs"
	}
	err = a.t.Wait(ctx, tenant, name, func(ctx context.Context) error {
		if err := a.own(r); err != nil {
			return err
		}
		if err := a.rate.Take(tenant); err != nil {
			return err
		}
		leave, err = q.Enter(ctx, tenant)
		return err
	})
	if err != nil {
		return nil, &isolation.Error{Op: op, ID: r.ID, Outcome: isolation.NotStarted, Err: err}
	}
	return leave, nil
}

// Create implements session.Engine.
func (a *admitted) Create(ctx context.Context, r engine.Request) (isolation.Sandbox, engine.Decision, error) {
	leave, err := a.enter(ctx, a.starts, "create", r)
	if err != nil {
		return nil, engine.Decision{}, err
	}
	defer leave()
	return a.Engine.Create(ctx, r)
}

// Restore implements session.Engine.
func (a *admitted) Restore(ctx context.Context, snapshot string, r engine.Request) (isolation.Sandbox, engine.Decision, error) {
	leave, err := a.enter(ctx, a.starts, "restore", r)
	if err != nil {
		return nil, engine.Decision{}, err
	}
	defer leave()
	return a.Engine.Restore(ctx, snapshot, r)
}

// turn waits for a place among the runs; that it is not too many at once Create sees to.
func (a *admitted) turn(ctx context.Context, r engine.Request) (leave func(), err error) {
	tenant, _, _ := strings.Cut(r.Spec.Tenant, "/")
	place, err := a.runs.Enter(ctx, tenant)
	if err != nil {
		return nil, err
	}
	give, err := a.memory.Take(ctx, tenant, r.Spec.Resources.MemoryBytes)
	if err != nil {
		place()
		a.t.Refused(tenant, admission.ReasonOf(err))
		return nil, err
	}
	return func() { give(); place() }, nil
}

// adopt counts a run that a daemon before this one has begun.
func (a *admitted) adopt(r engine.Request) (leave func()) {
	tenant, _, _ := strings.Cut(r.Spec.Tenant, "/")
	return a.memory.Adopt(tenant, r.Spec.Resources.MemoryBytes)
}

// Run implements session.Runner.
func (a *admitted) Run(ctx context.Context, r engine.Request) (*engine.Result, error) {
	leave, err := a.enter(ctx, a.runs, "run", r)
	if err != nil {
		return nil, err
	}
	defer leave()
	tenant, _, _ := strings.Cut(r.Spec.Tenant, "/")
	give, err := a.memory.Take(ctx, tenant, r.Spec.Resources.MemoryBytes)
	if err != nil {
		a.t.Refused(tenant, admission.ReasonOf(err))
		return nil, &isolation.Error{Op: "run", ID: r.ID, Outcome: isolation.NotStarted, Err: err}
	}
	defer give()
	return a.Engine.Run(ctx, r)
}
