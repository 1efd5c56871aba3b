package mem

import (
	"fmt"
	"maps"
	"slices"

	"github.com/axocoatl/isolation"
)

// Config makes a Driver. The zero value is a driver called "mem" of tier none
// that runs every requirement.
type Config struct {
	// Name of the driver; empty: "mem".
	Name string
	// Features changes what Probe tells, and with it what the driver does: it
	// refuses requirements, limits and options that are not told, and hides
	// abilities that are not. It starts from everything that mem has.
	Features func(*isolation.Features)
	// Programs adds to Builtin, or replaces some of them.
	Programs map[string]Program
	// Host is what detached sandboxes live on; drivers that share one find each
	// other's. nil: the driver has one of its own.
	Host *Host
	// Retain is how much of each output stream is kept for Attach after it
	// was delivered; 0: 64 KiB.
	Retain int
}

// enforced are the limits that mem simulates.
var enforced = []isolation.Limit{
	isolation.LimitWall, isolation.LimitCPUTime, isolation.LimitFuel, isolation.LimitOutput, isolation.LimitFiles,
	isolation.LimitMemory, isolation.LimitPids, isolation.LimitDisk,
}

// abilities are those that mem has.
var abilities = []string{
	isolation.AbilityAttach, isolation.AbilityPause, isolation.AbilityReset, isolation.AbilityStats,
	isolation.AbilityPorts, isolation.AbilityListen,
	isolation.AbilityFiles, isolation.AbilityWatch, isolation.AbilityRecover, isolation.AbilitySnapshot, isolation.AbilityRestore, isolation.AbilityFork,
}

func (c Config) features() isolation.Features {
	f := isolation.Features{
		Tier:      isolation.TierNone,
		Engine:    c.Name,
		Version:   "mem",
		Runs:      isolation.Requirements(),
		Options:   []isolation.Option{isolation.OptionCwd, isolation.OptionUser, isolation.OptionHostname, isolation.OptionDetached},
		Abilities: slices.Clone(abilities),
	}
	for _, l := range enforced {
		f.Enforces = append(f.Enforces, isolation.Enforcement{Limit: l, Enforced: true, By: "simulation"})
	}
	if c.Features != nil {
		c.Features(&f)
	}
	for _, a := range f.Abilities {
		if !slices.Contains(abilities, a) {
			panic(fmt.Sprintf("mem: features tell of %q, which mem does not have", a))
		}
	}
	for _, e := range f.Enforces {
		if e.Enforced && !slices.Contains(enforced, e.Limit) {
			panic(fmt.Sprintf("mem: features tell of limit %q, which mem does not have", e.Limit))
		}
	}
	return f
}

func (c Config) programs() map[string]Program {
	all := Builtin()
	maps.Copy(all, c.Programs)
	return all
}

// clone makes features that a caller may change.
func clone(f isolation.Features) isolation.Features {
	f.Runs = slices.Clone(f.Runs)
	f.Languages = slices.Clone(f.Languages)
	f.Functions = slices.Clone(f.Functions)
	f.Enforces = slices.Clone(f.Enforces)
	f.Walls = slices.Clone(f.Walls)
	f.Options = slices.Clone(f.Options)
	f.Abilities = slices.Clone(f.Abilities)
	f.Warnings = slices.Clone(f.Warnings)
	f.Depends = slices.Clone(f.Depends)
	return f
}
