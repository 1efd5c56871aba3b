package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// candidate is an engine that may be chosen. Its features are asked for only
// when everything that is known without a probe speaks for it.
type candidate struct {
	tier   isolation.Tier
	name   string
	driver isolation.Driver
}

// featuresOf probes a candidate, or knows.
type featuresOf func(context.Context, candidate) (isolation.Features, error)

// DefaultMinTier is the weakest tier for a requirement where the policy says
// nothing.
func DefaultMinTier(r isolation.Requirement) isolation.Tier {
	switch r {
	case isolation.NativeTrusted:
		return isolation.TierNone
	case isolation.WasmCompiled:
		return isolation.TierWASM
	}
	return isolation.TierOCI
}

// minTier returns the weakest tier that r may run in, and whether r itself
// lowered it. What the policy says a request can only raise. The default, where
// the policy says nothing, it can lower by naming a tier: that is consent.
func (p Policy) minTier(r Request) (least isolation.Tier, lowered bool) {
	least = p.leastAllowed(r.Spec.Requirement)
	if _, said := p.MinTier[r.Spec.Requirement]; !said {
		named := r.MinTier
		if named == nil {
			named = r.Tier
		}
		if named != nil && *named < least {
			return *named, true
		}
	}
	if r.MinTier != nil && *r.MinTier > least {
		least = *r.MinTier
	}
	return least, false
}

// lowering says how a person gets a tier that is below the least one.
func (p Policy) lowering(r Request) string {
	_, said := p.MinTier[r.Spec.Requirement]
	switch {
	case r.MinTier != nil && *r.MinTier > p.leastAllowed(r.Spec.Requirement):
		return "the request itself asks for that much: a lower --min-tier, if that is meant"
	case said:
		return "the policy's min_tier, if that is meant"
	}
	return "name it with --min-tier, if that is meant"
}

func (p Policy) leastAllowed(req isolation.Requirement) isolation.Tier {
	if t, said := p.MinTier[req]; said {
		return t
	}
	return DefaultMinTier(req)
}

// tierOrder lists the tiers to try for a requirement, best first: the ideal,
// then what SelectAvailable falls back to. Nothing but NativeTrusted reaches
// tier none; what is trusted runs there unless more is asked for.
func tierOrder(r isolation.Requirement) []isolation.Tier {
	switch isolation.Select(r) {
	case isolation.TierNone:
		return []isolation.Tier{isolation.TierNone, isolation.TierOCI, isolation.TierMicroVM}
	case isolation.TierWASM:
		return []isolation.Tier{isolation.TierWASM}
	case isolation.TierOCI:
		return []isolation.Tier{isolation.TierOCI, isolation.TierMicroVM, isolation.TierWASM}
	}
	return []isolation.Tier{isolation.TierMicroVM, isolation.TierOCI, isolation.TierWASM}
}

// RefusedError says that no engine may run a request, and why each may not.
type RefusedError struct {
	Requirement isolation.Requirement
	Decision    Decision
}

func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "no tier can run %v here (ideal: %v, at least: %v)", e.Requirement, e.Decision.Wanted, e.Decision.MinTier)
	for _, s := range e.Decision.Skipped {
		who := s.Tier.String()
		if s.Engine != "" {
			who += "/" + s.Engine
		}
		fmt.Fprintf(&b, "\n  %s: %s", who, s.Reason)
		if s.Fix != "" {
			fmt.Fprintf(&b, "; %s", s.Fix)
		}
	}
	return b.String()
}

// Is reports that a refusal is of class Unsupported.
func (e *RefusedError) Is(target error) bool { return target == isolation.ErrUnsupported }

// choose picks the engine for a request. It is the one place where a tier is
// chosen: Explain and Run both call it.
func choose(ctx context.Context, p Policy, all []candidate, r Request, asked []isolation.Limit, features featuresOf) (Decision, candidate, error) {
	least, lowered := p.minTier(r)
	d := Decision{
		Wanted: isolation.Select(r.Spec.Requirement), MinTier: least, Rule: p.rule,
		Skipped: []Skip{}, Enforced: []isolation.Enforcement{},
	}
	for _, t := range tierOrder(r.Spec.Requirement) {
		if r.Tier != nil && *r.Tier != t {
			continue
		}
		if t < d.MinTier {
			d.skip(t, "", fmt.Sprintf("weaker than the least tier for %v, which is %v", r.Spec.Requirement, d.MinTier), p.lowering(r))
			continue
		}
		engines := 0
		for _, c := range all {
			if c.tier != t || r.Engine != "" && c.name != r.Engine {
				continue
			}
			engines++
			f, reason, fix, err := consider(ctx, p, r, d.MinTier, c, asked, features)
			if err != nil {
				return d, candidate{}, err
			}
			if reason != "" {
				d.skip(t, c.name, reason, fix)
				continue
			}
			d.Got, d.Engine, d.Emulated = t, c.name, f.Emulated
			d.Degraded = f.Interpreted && r.Spec.Requirement != isolation.WasmCompiled
			d.Warnings = f.Warnings
			if def := DefaultMinTier(r.Spec.Requirement); lowered && t < def {
				d.Warnings = append(slices.Clip(d.Warnings), fmt.Sprintf("the request itself allows %v for %v, whose least tier is %v by default", t, r.Spec.Requirement, def))
			}
			d.enforce(f, r)
			return d, c, nil
		}
		if engines == 0 {
			if r.Engine != "" {
				d.skip(t, r.Engine, "no engine of this name is in this tier of this program", "axo doctor lists the engines")
			} else {
				d.skip(t, "", "no engine of this tier is built into this program", "use a version that has it")
			}
		}
	}
	if r.Tier != nil && !slices.Contains(tierOrder(r.Spec.Requirement), *r.Tier) {
		d.skip(*r.Tier, "", fmt.Sprintf("%v never runs in this tier", r.Spec.Requirement), "")
	}
	return d, candidate{}, &RefusedError{r.Spec.Requirement, d}
}

func (d *Decision) skip(t isolation.Tier, engine, reason, fix string) {
	d.Skipped = append(d.Skipped, Skip{t, engine, reason, fix})
}

// enforce lists each limit of the run, those of the policy's defaults included.
func (d *Decision) enforce(f isolation.Features, r Request) {
	for _, l := range isolation.LimitsOf(r.Spec, r.Process) {
		d.Enforced = append(d.Enforced, f.Enforcement(l))
	}
}

// consider returns why c cannot be used, or no reason. Its error means that the
// caller gave up.
func consider(ctx context.Context, p Policy, r Request, minTier isolation.Tier, c candidate, asked []isolation.Limit, features featuresOf) (f isolation.Features, reason, fix string, err error) {
	if len(p.Engines) > 0 && !slices.Contains(p.Engines, c.name) {
		return f, "the policy does not allow this engine", "add it to the policy's engines", nil
	}
	f, err = features(ctx, c)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return f, "", "", cause
		}
		reason, fix = probeReason(err)
		return f, reason, fix, nil
	}
	spec, req := r.Spec, r.Spec.Requirement
	switch {
	case spec.Func != "" && !slices.Contains(f.Functions, spec.Func):
		return f, fmt.Sprintf("no Go function %q is registered", spec.Func), "", nil
	case spec.Func == "" && f.Functions != nil:
		return f, "it runs registered Go functions only, and none is named", "", nil
	case f.Interpreted && req != isolation.WasmCompiled:
		if reason, fix := noInterpreter(f, spec); reason != "" {
			return f, reason, fix, nil
		}
	case !f.CanRun(req):
		return f, cannotRun(c, req), "", nil
	}
	if f.Emulated {
		switch {
		case !p.AllowEmulated && !r.AllowEmulated:
			return f, "its virtual machine is emulated, and nobody allowed that", "--allow-emulated, or the policy's allow_emulated", nil
		case minTier == isolation.TierMicroVM && !p.EmulatedIsMicroVM:
			return f, "an emulated virtual machine does not count as a microVM", "the policy's emulated_is_microvm", nil
		}
	}
	for _, o := range isolation.OptionsOf(spec, r.Process) {
		if !f.Has(o) {
			reason, fix = lacks(o, f)
			return f, reason, fix, nil
		}
	}
	if len(r.CopyIn)+len(r.CopyOut)+len(r.Sync) > 0 && !slices.Contains(f.Abilities, isolation.AbilityFiles) {
		return f, "it cannot copy files into a sandbox and out of it", "leave them out, or give it a directory", nil
	}
	if reason, fix := lacksEgress(f, p, r); reason != "" {
		return f, reason, fix, nil
	}
	for _, l := range isolation.LimitsOf(isolation.Spec{Resources: p.MaxResources}, isolation.ProcessSpec{Limits: p.MaxLimits}) {
		if e := f.Enforcement(l); !e.Enforced {
			return f, fmt.Sprintf("it cannot enforce the limit %s, which the policy sets: %s", l, e.Reason), "the policy's max, if that is meant", nil
		}
	}
	for _, l := range asked {
		if e := f.Enforcement(l); !e.Enforced && !r.AllowUnenforced {
			return f, fmt.Sprintf("it cannot enforce the limit %s: %s", l, e.Reason), "leave the limit out, or --allow-unenforced", nil
		}
	}
	return f, "", "", nil
}

// lacks says that an engine has not an option, and what does instead.
func lacks(o isolation.Option, f isolation.Features) (reason, fix string) {
	if o == isolation.OptionWritable && f.Has(isolation.OptionMounts) {
		return "it gives copies of directories, to be read only", "HOST:GUEST:ro, or HOST:GUEST:sync to have changes copied back at the end"
	}
	return fmt.Sprintf("it has no option %s", o), "leave it out"
}

func cannotRun(c candidate, req isolation.Requirement) string {
	if c.tier == isolation.TierWASM {
		return fmt.Sprintf("it runs compiled WebAssembly modules, not %v", req)
	}
	return fmt.Sprintf("it does not run %v", req)
}

// noInterpreter returns why an engine that interprets source cannot run spec's,
// or no reason.
func noInterpreter(f isolation.Features, spec isolation.Spec) (reason, fix string) {
	lang := spec.SourceLanguage()
	switch {
	case lang == "":
		return fmt.Sprintf("it runs compiled WebAssembly modules and source of a named language, not %v", spec.Requirement), ""
	case !f.CanRun(spec.Requirement) || !slices.Contains(f.Languages, lang):
		return fmt.Sprintf("no WASI interpreter for %s is installed", lang), fmt.Sprintf("axo runtime add %s FILE", lang)
	}
	return "", ""
}

// probeReason makes a failed probe a sentence and what would mend it.
func probeReason(err error) (reason, fix string) {
	var u *isolation.UnsupportedError
	if errors.As(err, &u) && u.Need != "" {
		return u.Feature + " is not supported here", "it needs " + u.Need
	}
	return "its probe failed: " + err.Error(), "axo doctor tells more"
}
