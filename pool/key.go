package pool

import (
	"crypto/sha256"
	"encoding/json"
	"strings"

	"github.com/axocoatl/isolation"
)

// prefix is what the ids of sandboxes begin with that a pool makes.
const prefix = "pool-"

// MadeAhead reports whether a driver's sandbox has an id of a pool's.
func MadeAhead(id string) bool { return strings.HasPrefix(id, prefix) }

// key is what sandboxes of one shelf have in common.
type key [sha256.Size]byte

// plain is spec without what does not make a sandbox another one.
func plain(spec isolation.Spec) isolation.Spec {
	spec.Tenant, spec.Annotations = "", nil
	return spec
}

// named reports whether the image of a spec is told by a name, which can come to
// mean another.
func named(spec isolation.Spec) bool {
	const digest = len("sha256:") + 2*sha256.Size
	i := spec.Root.Image
	return i != "" && (len(i) != digest || !strings.HasPrefix(i, "sha256:"))
}

// nameOf tells specs apart whose image is told by a name; "": it is not.
func nameOf(spec isolation.Spec) string {
	if !named(spec) {
		return ""
	}
	b, err := json.Marshal(plain(spec))
	if err != nil {
		return ""
	}
	return string(b)
}

// keyOf returns the shelf of a spec. A sandbox with directories of the host in
// it cannot be made ahead: what is at their names may be another thing by then.
// Neither can one of an image that is only named, nor, unless that is wanted, one that
// is to outlive this process: it has its id from the start, and nobody would know of
// it.
func (c Config) keyOf(spec isolation.Spec) (key, bool) {
	if spec.Detached && !c.Detached || len(spec.Mounts) > 0 || spec.Root.Path != "" || named(spec) {
		return key{}, false
	}
	b, err := json.Marshal(plain(spec))
	if err != nil {
		return key{}, false
	}
	return sha256.Sum256(b), true
}
