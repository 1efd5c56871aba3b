package isolation

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

func TestTierNames(t *testing.T) {
	for _, c := range []struct {
		tier        Tier
		name, alias string
	}{
		{TierNone, "none", "None"},
		{TierWASM, "wasm", "Wasmtime"},
		{TierOCI, "oci", "Oci"},
		{TierMicroVM, "microvm", "Firecracker"},
	} {
		if c.tier.String() != c.name {
			t.Errorf("%d: String() is %q, want %q", c.tier, c.tier, c.name)
		}
		b, err := json.Marshal(c.tier)
		if err != nil || string(b) != `"`+c.name+`"` {
			t.Errorf("%v: JSON is %s, %v", c.tier, b, err)
		}
		for _, s := range []string{c.name, c.alias} {
			got := Tier(99)
			if err := json.Unmarshal([]byte(`"`+s+`"`), &got); err != nil || got != c.tier {
				t.Errorf("%q is read as %v, %v, want %v", s, got, err, c.tier)
			}
		}
	}
}

func TestTierBad(t *testing.T) {
	for _, s := range []string{"", "NONE", "WASM", "docker", "wasm ", "0", "wasmtime"} {
		tier := TierOCI
		if _, err := ParseTier(s); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("ParseTier(%q): %v", s, err)
		}
		if err := tier.UnmarshalText([]byte(s)); !errors.Is(err, ErrInvalidArgument) || tier != TierOCI {
			t.Errorf("UnmarshalText(%q): %v, tier is now %v", s, err, tier)
		}
	}
	if _, err := Tier(4).MarshalText(); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("MarshalText of a tier that is none: %v", err)
	}
	if s := Tier(4).String(); s != "Tier(4)" {
		t.Errorf("String() of a tier that is none: %q", s)
	}
	var tier Tier
	if err := json.Unmarshal([]byte(`1`), &tier); err == nil {
		t.Error("a number was read as a tier")
	}
}

func TestTiersAreOrdered(t *testing.T) {
	if want := []Tier{TierNone, TierWASM, TierOCI, TierMicroVM}; !slices.Equal(Tiers(), want) || !slices.IsSorted(want) {
		t.Errorf("Tiers() is %v, want %v in rising order", Tiers(), want)
	}
	if TierNone != 0 || TierMicroVM != 3 {
		t.Error("the numbers of tiers are part of the contract")
	}
}

// TestMapKeys checks that policies, which are keyed by them, read well.
func TestMapKeys(t *testing.T) {
	b, err := json.Marshal(map[Requirement]Tier{Python: TierMicroVM})
	if err != nil || string(b) != `{"Python":"microvm"}` {
		t.Fatalf("JSON is %s, %v", b, err)
	}
	var m map[Requirement]Tier
	if err := json.Unmarshal([]byte(`{"Shell":"Oci"}`), &m); err != nil || m[Shell] != TierOCI {
		t.Errorf("read %v, %v", m, err)
	}
}
