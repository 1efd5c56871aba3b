package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
)

// stub is a candidate whose probe answers at once.
type stub struct {
	tier     isolation.Tier
	name     string
	features isolation.Features
	err      error
}

func able(t isolation.Tier, name string, runs ...isolation.Requirement) stub {
	return stub{tier: t, name: name, features: isolation.Features{
		Tier: t, Engine: name, Runs: runs,
		Enforces: []isolation.Enforcement{{Limit: isolation.LimitWall, Enforced: true, By: "timer"}, {Limit: isolation.LimitDisk, Reason: "no quota"}},
	}}
}

var source = []isolation.Requirement{isolation.Python, isolation.Shell, isolation.Arbitrary, isolation.ContainerImage, isolation.NativeTrusted}

func microVM() stub   { return able(isolation.TierMicroVM, "firecracker", source...) }
func container() stub { return able(isolation.TierOCI, "builtin", source...) }
func wasm() stub      { return able(isolation.TierWASM, "wazero", isolation.WasmCompiled) }
func process() stub   { return able(isolation.TierNone, "process", isolation.NativeTrusted) }

func decide(p Policy, r Request, stubs ...stub) (Decision, error) {
	var all []candidate
	by := map[string]stub{}
	for _, s := range stubs {
		all = append(all, candidate{tier: s.tier, name: s.name})
		by[s.name] = s
	}
	if r.Process.Args == nil {
		r.Process.Args = []string{"x"}
	}
	d, _, err := choose(context.Background(), p, all, r, isolation.LimitsOf(r.Spec, r.Process),
		func(_ context.Context, c candidate) (isolation.Features, error) {
			return by[c.name].features, by[c.name].err
		})
	return d, err
}

func want(r isolation.Requirement) Request { return Request{Spec: isolation.Spec{Requirement: r}} }

func TestChoice(t *testing.T) {
	all := []stub{microVM(), container(), wasm(), process()}
	for _, c := range []struct {
		req   isolation.Requirement
		have  []stub
		tier  isolation.Tier
		fails bool
	}{
		{isolation.WasmCompiled, all, isolation.TierWASM, false},
		{isolation.Python, all, isolation.TierMicroVM, false},
		{isolation.Shell, all, isolation.TierMicroVM, false},
		{isolation.Arbitrary, all, isolation.TierMicroVM, false},
		{isolation.ContainerImage, all, isolation.TierOCI, false},
		{isolation.NativeTrusted, all, isolation.TierNone, false},
		{isolation.Python, []stub{container(), wasm(), process()}, isolation.TierOCI, false},
		{isolation.ContainerImage, []stub{microVM(), wasm(), process()}, isolation.TierMicroVM, false},
		{isolation.Python, []stub{wasm(), process()}, 0, true},
		{isolation.Shell, []stub{wasm(), process()}, 0, true},
		{isolation.Arbitrary, []stub{wasm(), process()}, 0, true},
		{isolation.ContainerImage, []stub{wasm(), process()}, 0, true},
		{isolation.WasmCompiled, []stub{microVM(), container(), process()}, 0, true},
		{isolation.NativeTrusted, []stub{wasm()}, 0, true},
	} {
		d, err := decide(Policy{}, want(c.req), c.have...)
		if c.fails != (err != nil) || !c.fails && d.Got != c.tier {
			t.Errorf("%v with %d engines: %v, %v", c.req, len(c.have), d.Got, err)
		}
		if d.Wanted != isolation.Select(c.req) {
			t.Errorf("%v: wanted is %v", c.req, d.Wanted)
		}
		var refused *RefusedError
		if c.fails && (!errors.As(err, &refused) || !errors.Is(err, isolation.ErrUnsupported) || len(refused.Decision.Skipped) == 0) {
			t.Errorf("%v: %v is no refusal with reasons", c.req, err)
		}
	}
}

func TestSkipReasons(t *testing.T) {
	tier := func(t isolation.Tier) *isolation.Tier { return &t }
	interpreted := wasm()
	interpreted.features.Runs = append(interpreted.features.Runs, isolation.Python)
	interpreted.features.Interpreted = true
	interpreted.features.Languages = []string{"lua"}
	emulated := microVM()
	emulated.features.Emulated = true
	broken := container()
	broken.err = &isolation.UnsupportedError{Feature: "a container", Need: "user namespaces"}
	lowered := Policy{MinTier: map[isolation.Requirement]isolation.Tier{isolation.Python: isolation.TierWASM}}
	for name, c := range map[string]struct {
		policy Policy
		r      Request
		have   []stub
		says   string
	}{
		"weaker":            {Policy{}, want(isolation.Python), []stub{interpreted}, "weaker than the least tier"},
		"weaker by default": {Policy{}, want(isolation.Python), []stub{interpreted}, "name it with --min-tier"},
		"weaker by policy":  {Policy{MinTier: map[isolation.Requirement]isolation.Tier{isolation.Python: isolation.TierOCI}}, want(isolation.Python), []stub{interpreted}, "the policy's min_tier"},
		"weaker by request": {Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.Python}, MinTier: tier(isolation.TierMicroVM)}, []stub{interpreted}, "the request itself asks"},
		"no engine":         {Policy{}, want(isolation.Python), nil, "no engine of this tier"},
		"probe":             {Policy{}, want(isolation.Python), []stub{broken}, "it needs user namespaces"},
		"plain wasm":        {lowered, want(isolation.Python), []stub{wasm()}, "not Python"},
		"no language":       {lowered, Request{Spec: isolation.Spec{Requirement: isolation.Arbitrary}, MinTier: tier(isolation.TierWASM)}, []stub{interpreted}, "source of a named language"},
		"not this one":      {lowered, Request{Spec: isolation.Spec{Requirement: isolation.Arbitrary, Language: "js"}, MinTier: tier(isolation.TierWASM)}, []stub{interpreted}, "axo runtime add js"},
		"no interpreter":    {lowered, want(isolation.Python), []stub{interpreted}, "no WASI interpreter for python"},
		"emulated":          {Policy{}, want(isolation.Python), []stub{emulated}, "emulated, and nobody allowed"},
		"emulated and min": {Policy{AllowEmulated: true}, Request{Spec: isolation.Spec{Requirement: isolation.Python}, MinTier: tier(isolation.TierMicroVM)},
			[]stub{emulated}, "does not count as a microVM"},
		"policy engines": {Policy{Engines: []string{"other"}}, want(isolation.WasmCompiled), []stub{wasm()}, "policy does not allow"},
		"option": {Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.WasmCompiled}, Process: isolation.ProcessSpec{Args: []string{"x"}, Cwd: "/"}},
			[]stub{wasm()}, "no option cwd"},
		"limit": {Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.WasmCompiled, Resources: isolation.Resources{DiskBytes: 1}}},
			[]stub{wasm()}, "cannot enforce the limit disk: no quota"},
		"wrong tier": {Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.Python}, Tier: tier(isolation.TierNone)}, []stub{process()}, "never runs in this tier"},
		"engine":     {Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.WasmCompiled}, Engine: "wasmtime"}, []stub{wasm()}, "no engine of this name"},
		"function":   {Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.NativeTrusted, Func: "f"}}, []stub{process()}, "no Go function"},
	} {
		d, err := decide(c.policy, c.r, c.have...)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v; want %q", name, d, err, c.says)
		}
	}
}

func TestConsentAndMinTier(t *testing.T) {
	emulated := microVM()
	emulated.features.Emulated = true
	r := want(isolation.Python)
	r.AllowEmulated = true
	if d, err := decide(Policy{}, r, emulated); err != nil || !d.Emulated {
		t.Errorf("with consent: %+v %v", d, err)
	}
	r = want(isolation.WasmCompiled)
	r.Spec.Resources.DiskBytes, r.AllowUnenforced = 1, true
	if d, err := decide(Policy{}, r, wasm()); err != nil || len(d.Enforced) != 1 || d.Enforced[0].Enforced {
		t.Errorf("a limit that is not enforced, with consent: %+v %v", d, err)
	}
	min := isolation.TierMicroVM
	r = want(isolation.Python)
	r.MinTier = &min
	if _, err := decide(Policy{}, r, container()); err == nil {
		t.Error("MinTier microvm ran in a container")
	}
	interpreted := wasm()
	interpreted.features.Runs, interpreted.features.Interpreted, interpreted.features.Languages = source, true, []string{"python"}
	p := Policy{MinTier: map[isolation.Requirement]isolation.Tier{isolation.Python: isolation.TierWASM}}
	if d, err := decide(p, want(isolation.Python), interpreted); err != nil || !d.Degraded || d.Got != isolation.TierWASM || len(d.Warnings) != 0 {
		t.Errorf("through an interpreter: %+v %v", d, err)
	}
	if d, err := decide(Policy{}, want(isolation.Python), interpreted); err == nil {
		t.Errorf("the default least tier was lowered by nobody: %+v", d)
	}
	// A request that names a weaker tier consents to it, and the decision says so.
	weak := isolation.TierWASM
	for name, r := range map[string]Request{
		"min tier": {Spec: isolation.Spec{Requirement: isolation.Python}, MinTier: &weak},
		"tier":     {Spec: isolation.Spec{Requirement: isolation.Python}, Tier: &weak},
	} {
		d, err := decide(Policy{}, r, interpreted)
		if err != nil || !d.Degraded || d.MinTier != weak || len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "the request itself allows wasm") {
			t.Errorf("consent by %s: %+v %v", name, d, err)
		}
		// It is no wish: what is better and there is taken.
		if d, err := decide(Policy{}, r, interpreted, container()); r.Tier == nil && (err != nil || d.Got != isolation.TierOCI || len(d.Warnings) != 0) {
			t.Errorf("consent by %s beside a container: %+v %v", name, d, err)
		}
		// Never below what the policy says.
		strict := Policy{MinTier: map[isolation.Requirement]isolation.Tier{isolation.Python: isolation.TierOCI}}
		if d, err := decide(strict, r, interpreted); err == nil {
			t.Errorf("a request lowered the policy's least tier by %s: %+v", name, d)
		}
	}
	none := isolation.TierNone
	if d, err := decide(Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.Python}, MinTier: &none}, wasm(), process()); err == nil {
		t.Errorf("Python ran without isolation: %+v", d)
	}
	// Both named: the least tier is the stricter word.
	oci := isolation.TierOCI
	if d, err := decide(Policy{}, Request{Spec: isolation.Spec{Requirement: isolation.Python}, Tier: &weak, MinTier: &oci}, interpreted); err == nil {
		t.Errorf("tier wasm with min tier oci: %+v", d)
	}
}
