package server

import (
	"context"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/server/rest"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/telemetry"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/pool"
)

// measured is an engine whose runs are measured, those that are refused too.
type measured struct {
	rest.Engine
	t *telemetry.Telemetry
}

// Run is that of the engine.
func (m measured) Run(ctx context.Context, r engine.Request) (*engine.Result, error) {
	if r.ID == "" {
		r.ID = session.NewRunID()
	}
	return m.t.Run(ctx, r.Spec.Tenant, r.ID, func(ctx context.Context) (*engine.Result, error) { return m.Engine.Run(ctx, r) })
}

// also calls both; the second may be nil.
func also(a, b func(session.Event)) func(session.Event) {
	if b == nil {
		return a
	}
	return func(e session.Event) {
		a(e)
		b(e)
	}
}

// sources are what the metrics of a daemon's state are read from.
func (c Config) sources(sessions *session.Manager, e *admitted) telemetry.Sources {
	s := telemetry.Sources{
		Sessions: sessions,
		Queues:   map[string]interface{ Counts() (taken, waiting int) }{"starts": e.starts, "runs": e.runs},
		Pools: func() (list []telemetry.Pool) {
			for _, r := range c.Engine.Registry().All() {
				if p, ok := isolation.As[interface{ Stats() pool.Stats }](r.Driver); ok {
					list = append(list, telemetry.Pool{Engine: r.Driver.Name(), Tier: r.Tier, Stats: p.Stats()})
				}
			}
			return list
		},
	}
	if e.memory != nil {
		s.Queues["memory"] = e.memory
	}
	if c.Auditor != nil {
		s.Audit = c.Auditor.Log.Counts
	}
	return s
}
