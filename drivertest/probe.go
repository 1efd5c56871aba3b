package drivertest

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/axocoatl/isolation"
)

var probeChecks = []check{
	{"features", checkFeatures},
	{"again", checkProbeAgain},
	{"canceled", checkProbeCanceled},
	{"programs", checkPrograms},
}

func checkFeatures(t testing.TB, s *suite) {
	f := s.features
	if f.Engine != s.d.Name() {
		t.Errorf("Engine is %q, Name() is %q", f.Engine, s.d.Name())
	}
	if !slices.Contains(isolation.Tiers(), f.Tier) {
		t.Errorf("tier %v is none", f.Tier)
	}
	if len(f.Runs) == 0 {
		t.Error("Runs is empty")
	}
	for _, r := range f.Runs {
		if !slices.Contains(isolation.Requirements(), r) {
			t.Errorf("Runs has %v", r)
		}
	}
	seen := map[any]bool{}
	once := func(v any) {
		if seen[v] {
			t.Errorf("%T %v is told twice", v, v)
		}
		seen[v] = true
	}
	for _, e := range f.Enforces {
		once(e.Limit)
		if e.Enforced && e.By == "" {
			t.Errorf("limit %s: enforced by what?", e.Limit)
		}
		if !e.Enforced && e.Reason == "" {
			t.Errorf("limit %s: not enforced, for which reason?", e.Limit)
		}
	}
	for _, w := range f.Walls {
		once(w)
		if w.Name == "" {
			t.Error("a wall has no name")
		}
	}
	for _, a := range f.Abilities {
		once(a)
		if !slices.Contains(abilityNames(), a) {
			t.Errorf("ability %q is none", a)
		}
	}
	for _, o := range f.Options {
		once(o)
	}
}

func checkProbeAgain(t testing.TB, s *suite) {
	f, err := s.d.Probe(s.ctx(t))
	if err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if !reflect.DeepEqual(f, s.features) {
		t.Errorf("Probe tells something else the second time:\n%+v\n%+v", s.features, f)
	}
}

func checkProbeCanceled(t testing.TB, s *suite) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	// A driver that knows the answer may give it.
	f, err := s.d.Probe(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Probe of a canceled ctx: %v", err)
	}
	if f.Tier != s.features.Tier || f.Engine != s.features.Engine || !slices.Equal(f.Runs, s.features.Runs) {
		t.Errorf("the static features are %v %q %v with an error, %v %q %v without",
			f.Tier, f.Engine, f.Runs, s.features.Tier, s.features.Engine, s.features.Runs)
	}
}

func checkPrograms(t testing.TB, s *suite) {
	for _, p := range Programs() {
		spec, ps, ok := s.c.Command(p, "1")
		if !ok {
			if slices.Contains(required, p) {
				t.Errorf("program %q is missing: every driver must have it", p)
			}
			continue
		}
		if err := spec.Validate(); err != nil {
			t.Errorf("program %q: %v", p, err)
		}
		if err := ps.Validate(); err != nil {
			t.Errorf("program %q: %v", p, err)
		}
		if !s.features.CanRun(spec.Requirement) {
			t.Errorf("program %q needs %v, Runs is %v", p, spec.Requirement, s.features.Runs)
		}
	}
}
