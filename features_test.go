package isolation

import (
	"encoding/json"
	"reflect"
	"slices"
	"testing"
)

func TestFeatures(t *testing.T) {
	f := Features{
		Runs:     []Requirement{Shell},
		Enforces: []Enforcement{{Limit: LimitWall, Enforced: true, By: "host timer"}, {Limit: LimitPids, Reason: "no cgroup"}},
		Options:  []Option{OptionCwd},
	}
	if e := f.Enforcement(LimitWall); !e.Enforced || e.By != "host timer" {
		t.Errorf("wall: %+v", e)
	}
	if e := f.Enforcement(LimitPids); e.Enforced || e.Reason != "no cgroup" {
		t.Errorf("pids: %+v", e)
	}
	if e := f.Enforcement(LimitFuel); e.Enforced || e.Limit != LimitFuel || e.Reason == "" {
		t.Errorf("fuel, which is not listed: %+v", e)
	}
	if !f.CanRun(Shell) || f.CanRun(Python) || !f.Has(OptionCwd) || f.Has(OptionUser) {
		t.Error("CanRun or Has is wrong")
	}
	var none Features
	if none.CanRun(0) || none.Has("") || none.Enforcement(LimitWall).Enforced {
		t.Error("no features have something")
	}
}

func TestFeaturesJSON(t *testing.T) {
	f := Features{
		Tier: TierWASM, Engine: "wazero", Version: "1", Runs: []Requirement{WasmCompiled}, Interpreted: true,
		Languages: []string{"python"}, Functions: []string{"f"}, Emulated: true,
		Enforces: []Enforcement{{LimitWall, true, "timer", "", true, true}}, Walls: []Wall{{"wasm", true, ""}},
		Options: []Option{OptionMounts}, Abilities: []string{AbilityFiles}, Warnings: []string{"w"}, Depends: []string{"/x"},
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var got Features
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(got, f) {
		t.Errorf("read %+v, %v from %s", got, err, b)
	}
}

// TestUsedParts sets one field at a time: each option and limit is found by
// what asks for it, and by nothing else.
func TestUsedParts(t *testing.T) {
	options := map[Option]func(*Spec, *ProcessSpec){
		OptionMounts:   func(s *Spec, _ *ProcessSpec) { s.Mounts = append(s.Mounts, Mount{ReadOnly: true}) },
		OptionWritable: func(s *Spec, _ *ProcessSpec) { s.Mounts = append(s.Mounts, Mount{}) },
		OptionCwd:      func(_ *Spec, p *ProcessSpec) { p.Cwd = "/" },
		OptionUser:     func(_ *Spec, p *ProcessSpec) { p.User = "1" },
		OptionTerminal: func(_ *Spec, p *ProcessSpec) { p.Terminal = true },
		OptionHostname: func(s *Spec, _ *ProcessSpec) { s.Hostname = "h" },
		OptionImage:    func(s *Spec, _ *ProcessSpec) { s.Root.Image = "i" },
		OptionRootPath: func(s *Spec, _ *ProcessSpec) { s.Root.Path = "/" },
		OptionSession:  func(s *Spec, _ *ProcessSpec) { s.Profile = "session" },
		OptionDetached: func(s *Spec, _ *ProcessSpec) { s.Detached = true },
		OptionTemplate: func(s *Spec, _ *ProcessSpec) { s.Root.Template = "x" },
	}
	limits := map[Limit]func(*Spec, *ProcessSpec){
		LimitWall:    func(_ *Spec, p *ProcessSpec) { p.Limits.Wall = 1 },
		LimitCPUTime: func(_ *Spec, p *ProcessSpec) { p.Limits.CPU = 1 },
		LimitFuel:    func(_ *Spec, p *ProcessSpec) { p.Limits.Fuel = 1 },
		LimitOutput:  func(_ *Spec, p *ProcessSpec) { p.Limits.OutputBytes = 1 },
		LimitFiles:   func(_ *Spec, p *ProcessSpec) { p.Limits.OpenFiles = 1 },
		LimitMemory:  func(s *Spec, _ *ProcessSpec) { s.Resources.MemoryBytes = 1 },
		LimitCPUs:    func(s *Spec, _ *ProcessSpec) { s.Resources.CPUs = 0.1 },
		LimitPids:    func(s *Spec, _ *ProcessSpec) { s.Resources.Pids = 1 },
		LimitDisk:    func(s *Spec, _ *ProcessSpec) { s.Resources.DiskBytes = 1 },
	}
	var all Spec
	var allP ProcessSpec
	for o, set := range options {
		var s Spec
		var p ProcessSpec
		set(&s, &p)
		set(&all, &allP)
		want := []Option{o}
		if o == OptionWritable {
			want = []Option{OptionMounts, o}
		}
		if got := OptionsOf(s, p); !slices.Equal(got, want) || LimitsOf(s, p) != nil {
			t.Errorf("option %s: found %v, limits %v", o, got, LimitsOf(s, p))
		}
	}
	for l, set := range limits {
		var s Spec
		var p ProcessSpec
		set(&s, &p)
		set(&all, &allP)
		if got := LimitsOf(s, p); !slices.Equal(got, []Limit{l}) || OptionsOf(s, p) != nil {
			t.Errorf("limit %s: found %v, options %v", l, got, OptionsOf(s, p))
		}
		if s.Resources.IsZero() && p.Limits.IsZero() {
			t.Errorf("limit %s: IsZero", l)
		}
	}
	if n := len(OptionsOf(all, allP)); n != len(options) {
		t.Errorf("of %d options %d are found", len(options), n)
	}
	if n := len(LimitsOf(all, allP)); n != len(limits) {
		t.Errorf("of %d limits %d are found", len(limits), n)
	}
	if OptionsOf(Spec{Profile: "default"}, ProcessSpec{}) != nil {
		t.Error("the default profile is an option")
	}
}
