package isolation

import (
	"fmt"
	"slices"
)

// Requirement is what a caller wants to run. Languages other than Python and
// shell are [Arbitrary] with Spec.Language set. The zero value is no
// requirement and is refused wherever one is needed.
type Requirement uint8

// The requirements.
const (
	WasmCompiled   Requirement = iota + 1 // a compiled WebAssembly module
	Python                                // Python source
	Shell                                 // a shell command
	Arbitrary                             // any program for the host's system
	ContainerImage                        // an OCI image
	NativeTrusted                         // a built-in that the operator trusts
)

// Requirements returns all requirements.
func Requirements() []Requirement {
	return []Requirement{WasmCompiled, Python, Shell, Arbitrary, ContainerImage, NativeTrusted}
}

var requirementNames = [...]string{
	WasmCompiled:   "WasmCompiled",
	Python:         "Python",
	Shell:          "Shell",
	Arbitrary:      "Arbitrary",
	ContainerImage: "ContainerImage",
	NativeTrusted:  "NativeTrusted",
}

func (r Requirement) valid() bool { return r > 0 && int(r) < len(requirementNames) }

// String returns the JSON name, which is the name of the constant.
func (r Requirement) String() string {
	if r.valid() {
		return requirementNames[r]
	}
	return fmt.Sprintf("Requirement(%d)", uint8(r))
}

// ParseRequirement reads a requirement's JSON name. Its error is of class
// [ErrInvalidArgument].
func ParseRequirement(s string) (Requirement, error) {
	for r, n := range requirementNames {
		if n != "" && n == s {
			return Requirement(r), nil
		}
	}
	return 0, fmt.Errorf("requirement %q: want one of %v: %w", s, Requirements(), ErrInvalidArgument)
}

// MarshalText writes the JSON name.
func (r Requirement) MarshalText() ([]byte, error) {
	if !r.valid() {
		return nil, fmt.Errorf("%v: %w", r, ErrInvalidArgument)
	}
	return []byte(requirementNames[r]), nil
}

// UnmarshalText reads the JSON name.
func (r *Requirement) UnmarshalText(b []byte) error {
	v, err := ParseRequirement(string(b))
	if err != nil {
		return err
	}
	*r = v
	return nil
}

// Select returns the ideal tier for req, whatever the host has. An invalid
// requirement gets the strongest tier.
func Select(req Requirement) Tier {
	switch req {
	case WasmCompiled:
		return TierWASM
	case ContainerImage:
		return TierOCI
	case NativeTrusted:
		return TierNone
	default:
		return TierMicroVM
	}
}

// SelectAvailable returns the best tier for req among have. [TierWASM] and
// [TierNone] are always there, listed or not. A missing microVM falls back to
// a container, then to WASM; a missing container falls *forward* to a microVM,
// then to WASM.
//
// It says nothing of whether the tier it names can run the program: Python on
// plain WASM cannot. The engine package never acts on it alone.
func SelectAvailable(req Requirement, have []Tier) Tier {
	var order []Tier
	switch ideal := Select(req); ideal {
	case TierMicroVM:
		order = []Tier{TierMicroVM, TierOCI, TierWASM}
	case TierOCI:
		order = []Tier{TierOCI, TierMicroVM, TierWASM}
	default:
		return ideal
	}
	for _, t := range order {
		if t == TierWASM || slices.Contains(have, t) {
			return t
		}
	}
	return TierWASM
}
