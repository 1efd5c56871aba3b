package engine

import (
	"context"
	"time"

	"github.com/axocoatl/isolation"
)

// Registry returns the drivers that the engine was made with.
func (e *Engine) Registry() isolation.Registry { return e.config.Registry }

// Tiers tells what Doctor does, by what is known of engines that were probed before,
// as a run would have it.
func (e *Engine) Tiers(ctx context.Context) []EngineReport {
	var out []EngineReport
	for _, c := range e.candidates {
		began := e.config.Now()
		f, err := e.probes.features(ctx, c)
		r := EngineReport{Tier: c.tier, Engine: c.name, OK: err == nil, Features: f, Took: e.config.Now().Sub(began)}
		r.TookMS = float64(r.Took) / float64(time.Millisecond)
		if err != nil {
			r.Reason, r.Fix = probeReason(err)
		}
		out = append(out, r)
	}
	return out
}
