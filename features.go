package isolation

import "slices"

// Features is the truth about one engine on this host, as found by Probe. What
// it does not list is not there.
type Features struct {
	Tier    Tier   `json:"tier"`
	Engine  string `json:"engine"`
	Version string `json:"version,omitempty"` // of the engine: "wazero 1.12.0"
	// Runs lists what can be run. Python, Shell and Arbitrary source also
	// need their language in Languages when Interpreted is set.
	Runs []Requirement `json:"runs"`
	// Interpreted: source runs only through an interpreter installed for its
	// language, which is a degraded way to run it.
	Interpreted bool     `json:"interpreted,omitempty"`
	Languages   []string `json:"languages,omitempty"`
	Functions   []string `json:"functions,omitempty"` // registered Go functions
	// Emulated: the boundary is an emulator, not hardware.
	Emulated bool `json:"emulated,omitempty"`
	// Enforces lists each limit that the engine knows, whether it can
	// enforce it here, and by what. A limit that is not listed cannot be.
	Enforces []Enforcement `json:"enforces"`
	// Walls lists what stands between the program and the host, outermost
	// last, with those that are missing here.
	Walls []Wall `json:"walls,omitempty"`
	// Options of Spec and ProcessSpec that are honoured: see the Option
	// constants.
	Options   []Option `json:"options,omitempty"`
	Abilities []string `json:"abilities,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	// Depends lists the host files on which this answer rests; when one
	// changes, the answer is void.
	Depends []string `json:"depends,omitempty"`
}

// Enforcement says how one limit is held.
type Enforcement struct {
	Limit    Limit  `json:"limit"`
	Enforced bool   `json:"enforced"`
	By       string `json:"by,omitempty"`     // "store limit", "cgroup v1", "host timer"
	Reason   string `json:"reason,omitempty"` // why not
	// Uncounted: the limit holds, but nobody counts who runs into it, so that
	// LimitsHit may not tell.
	Uncounted bool `json:"uncounted,omitempty"`
	// Fatal: a process that is ended by the limit takes its sandbox along.
	Fatal bool `json:"fatal,omitempty"`
}

// Wall is one thing between the program and the host.
type Wall struct {
	Name    string `json:"name"` // "wasm", "process", "landlock", "seccomp", "cgroup"
	Present bool   `json:"present"`
	Detail  string `json:"detail,omitempty"`
}

// Option is a part of Spec or ProcessSpec that not every tier has.
type Option string

// The options.
const (
	OptionMounts   Option = "mounts"
	OptionWritable Option = "writable_mounts" // what is written there is on the host at once
	OptionCwd      Option = "cwd"
	OptionUser     Option = "user"
	OptionTerminal Option = "terminal"
	OptionHostname Option = "hostname"
	OptionImage    Option = "image"
	OptionRootPath Option = "root_path"
	OptionSession  Option = "session" // Profile "session"
	OptionDetached Option = "detached"
	OptionTemplate Option = "template"
)

// Enforcement returns how l is held; a limit that is not listed is not
// enforced.
func (f Features) Enforcement(l Limit) Enforcement {
	for _, e := range f.Enforces {
		if e.Limit == l {
			return e
		}
	}
	return Enforcement{Limit: l, Reason: "the engine has no such limit"}
}

// CanRun reports whether the engine runs req.
func (f Features) CanRun(req Requirement) bool { return slices.Contains(f.Runs, req) }

// Has reports whether the engine honours o.
func (f Features) Has(o Option) bool { return slices.Contains(f.Options, o) }

// OptionsOf lists the options that spec and p use.
func OptionsOf(spec Spec, p ProcessSpec) []Option {
	var out []Option
	add := func(used bool, o Option) {
		if used {
			out = append(out, o)
		}
	}
	add(len(spec.Mounts) > 0, OptionMounts)
	add(slices.ContainsFunc(spec.Mounts, func(m Mount) bool { return !m.ReadOnly }), OptionWritable)
	add(p.Cwd != "", OptionCwd)
	add(p.User != "", OptionUser)
	add(p.Terminal, OptionTerminal)
	add(spec.Hostname != "", OptionHostname)
	add(spec.Root.Image != "", OptionImage)
	add(spec.Root.Path != "", OptionRootPath)
	add(spec.Profile == "session", OptionSession)
	add(spec.Detached, OptionDetached)
	add(spec.Root.Template != "", OptionTemplate)
	return out
}

// LimitsOf lists the limits that spec and p ask for.
func LimitsOf(spec Spec, p ProcessSpec) []Limit {
	var out []Limit
	add := func(asked bool, l Limit) {
		if asked {
			out = append(out, l)
		}
	}
	r, l := spec.Resources, p.Limits
	add(l.Wall > 0, LimitWall)
	add(l.CPU > 0, LimitCPUTime)
	add(l.Fuel > 0, LimitFuel)
	add(l.OutputBytes > 0, LimitOutput)
	add(l.OpenFiles > 0, LimitFiles)
	add(r.MemoryBytes > 0, LimitMemory)
	add(r.CPUs > 0, LimitCPUs)
	add(r.Pids > 0, LimitPids)
	add(r.DiskBytes > 0, LimitDisk)
	add(!r.IO.IsZero(), LimitIO)
	return out
}
