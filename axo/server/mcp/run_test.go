package mcp

import (
	"testing"

	"github.com/axocoatl/isolation"
)

// TestMinTierOnlyRaises: what a model asks for lowers nothing.
func TestMinTierOnlyRaises(t *testing.T) {
	for _, c := range []struct {
		name string
		what isolation.Requirement
		want isolation.Tier
	}{
		{"none", isolation.Python, isolation.TierOCI}, {"wasm", isolation.Python, isolation.TierOCI}, {"oci", isolation.Python, isolation.TierOCI},
		{"microvm", isolation.Python, isolation.TierMicroVM}, {"none", isolation.WasmCompiled, isolation.TierWASM}, {"oci", isolation.WasmCompiled, isolation.TierOCI},
	} {
		if got, err := tierOf(c.name, c.what); err != nil || *got != c.want {
			t.Errorf("%s for %v: %v %v", c.name, c.what, got, err)
		}
	}
	if got, err := tierOf("", isolation.Python); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
	if _, err := tierOf("strong", isolation.Python); err == nil {
		t.Error("a tier that is none is taken")
	}
}
