package isolation

import "fmt"

// Tier is a strength of isolation. Tiers are ordered: a larger one is a
// stronger boundary. The order is by boundary, not by speed or by cost, and
// "stronger" is about the host's exposure; docs/SECURITY-MODEL.md says what
// each does and does not stop.
type Tier uint8

// The tiers, weakest first.
const (
	TierNone    Tier = iota // no boundary: trusted built-ins only
	TierWASM                // WASM sandbox with WASI capabilities, in a jailed process
	TierOCI                 // namespaces, cgroups, seccomp, capabilities, Landlock
	TierMicroVM             // virtual machine
)

// Tiers returns all tiers, weakest first.
func Tiers() []Tier { return []Tier{TierNone, TierWASM, TierOCI, TierMicroVM} }

var tierNames = [...]struct{ name, alias string }{
	TierNone:    {"none", "None"},
	TierWASM:    {"wasm", "Wasmtime"},
	TierOCI:     {"oci", "Oci"},
	TierMicroVM: {"microvm", "Firecracker"},
}

// String returns the JSON name of t: none, wasm, oci or microvm.
func (t Tier) String() string {
	if int(t) < len(tierNames) {
		return tierNames[t].name
	}
	return fmt.Sprintf("Tier(%d)", uint8(t))
}

// ParseTier reads a tier's name. It takes the JSON name and the spelling of
// the Rust crate axocoatl-isolation (None, Wasmtime, Oci, Firecracker). Its
// error is of class [ErrInvalidArgument].
func ParseTier(s string) (Tier, error) {
	for t, n := range tierNames {
		if s == n.name || s == n.alias {
			return Tier(t), nil
		}
	}
	return 0, fmt.Errorf("tier %q: want none, wasm, oci or microvm: %w", s, ErrInvalidArgument)
}

// MarshalText writes the JSON name.
func (t Tier) MarshalText() ([]byte, error) {
	if int(t) >= len(tierNames) {
		return nil, fmt.Errorf("%v: %w", t, ErrInvalidArgument)
	}
	return []byte(tierNames[t].name), nil
}

// UnmarshalText reads either spelling; see [ParseTier].
func (t *Tier) UnmarshalText(b []byte) error {
	v, err := ParseTier(string(b))
	if err != nil {
		return err
	}
	*t = v
	return nil
}
