package pool

import (
	"crypto/sha256"
	"encoding/json"

	"github.com/axocoatl/isolation"
)

// key is what sandboxes of one shelf have in common.
type key [sha256.Size]byte

// plain is spec without what does not make a sandbox another one.
func plain(spec isolation.Spec) isolation.Spec {
	spec.Tenant, spec.Annotations = "", nil
	return spec
}

// keyOf returns the shelf of a spec. A sandbox with directories of the host in
// it cannot be made ahead: what is at their names may be another thing by then.
func keyOf(spec isolation.Spec) (key, bool) {
	if len(spec.Mounts) > 0 {
		return key{}, false
	}
	b, err := json.Marshal(plain(spec))
	if err != nil {
		return key{}, false
	}
	return sha256.Sum256(b), true
}
