package engine

import (
	"context"
	"time"

	"github.com/axocoatl/isolation"
)

// Registry returns the drivers that the engine was made with.
func (e *Engine) Registry() isolation.Registry { return e.config.Registry }

// Tiers tells what Doctor does, by what is known of engines that were probed before,
// as a run would have it; of one engine alone if it is named.
func (e *Engine) Tiers(ctx context.Context, engine string) []EngineReport {
	out := []EngineReport{}
	for _, c := range e.candidates {
		if engine != "" && c.name != engine {
			continue
		}
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
