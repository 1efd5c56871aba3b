package isolation

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

func TestRequirementNames(t *testing.T) {
	names := []string{"WasmCompiled", "Python", "Shell", "Arbitrary", "ContainerImage", "NativeTrusted"}
	if len(names) != len(Requirements()) {
		t.Fatalf("Requirements() is %v", Requirements())
	}
	for i, r := range Requirements() {
		if r.String() != names[i] || int(r) != i+1 {
			t.Errorf("requirement %d is %v, want %s", r, r, names[i])
		}
		b, err := json.Marshal(r)
		if err != nil || string(b) != `"`+names[i]+`"` {
			t.Errorf("%v: JSON is %s, %v", r, b, err)
		}
		var got Requirement
		if err := json.Unmarshal(b, &got); err != nil || got != r {
			t.Errorf("%s is read as %v, %v", b, got, err)
		}
	}
}

func TestRequirementBad(t *testing.T) {
	for _, s := range []string{"", "python", "PYTHON", "Wasm", "Python ", "1"} {
		r := Shell
		if _, err := ParseRequirement(s); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("ParseRequirement(%q): %v", s, err)
		}
		if err := r.UnmarshalText([]byte(s)); !errors.Is(err, ErrInvalidArgument) || r != Shell {
			t.Errorf("UnmarshalText(%q): %v, requirement is now %v", s, err, r)
		}
	}
	for _, r := range []Requirement{0, 7, 255} {
		if _, err := r.MarshalText(); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("MarshalText of %v: %v", r, err)
		}
	}
	if s := Requirement(0).String(); s != "Requirement(0)" {
		t.Errorf("String() of no requirement: %q", s)
	}
}

// selections is every row of Select and SelectAvailable: the ideal, and what is
// chosen when neither containers nor microVMs are there, containers, microVMs,
// both.
var selections = []struct {
	req   Requirement
	ideal Tier
	chose [4]Tier
}{
	{WasmCompiled, TierWASM, [4]Tier{TierWASM, TierWASM, TierWASM, TierWASM}},
	{Python, TierMicroVM, [4]Tier{TierWASM, TierOCI, TierMicroVM, TierMicroVM}},
	{Shell, TierMicroVM, [4]Tier{TierWASM, TierOCI, TierMicroVM, TierMicroVM}},
	{Arbitrary, TierMicroVM, [4]Tier{TierWASM, TierOCI, TierMicroVM, TierMicroVM}},
	{ContainerImage, TierOCI, [4]Tier{TierWASM, TierOCI, TierMicroVM, TierOCI}},
	{NativeTrusted, TierNone, [4]Tier{TierNone, TierNone, TierNone, TierNone}},
	{0, TierMicroVM, [4]Tier{TierWASM, TierOCI, TierMicroVM, TierMicroVM}},
	{99, TierMicroVM, [4]Tier{TierWASM, TierOCI, TierMicroVM, TierMicroVM}},
}

func TestSelect(t *testing.T) {
	for _, c := range selections {
		if got := Select(c.req); got != c.ideal {
			t.Errorf("Select(%v) is %v, want %v", c.req, got, c.ideal)
		}
	}
}

// TestSelectAvailable has all 16 sets of tiers, in either order, and twice.
func TestSelectAvailable(t *testing.T) {
	for _, c := range selections {
		for set := range 16 {
			var have []Tier
			for i, tier := range Tiers() {
				if set&(1<<i) != 0 {
					have = append(have, tier)
				}
			}
			column := 0
			if slices.Contains(have, TierOCI) {
				column++
			}
			if slices.Contains(have, TierMicroVM) {
				column += 2
			}
			want := c.chose[column]
			reversed := slices.Clone(have)
			slices.Reverse(reversed)
			for _, h := range [][]Tier{have, reversed, append(have, have...)} {
				before := slices.Clone(h)
				if got := SelectAvailable(c.req, h); got != want {
					t.Errorf("SelectAvailable(%v, %v) is %v, want %v", c.req, h, got, want)
				}
				if !slices.Equal(h, before) {
					t.Errorf("SelectAvailable changed its argument")
				}
			}
		}
	}
}
