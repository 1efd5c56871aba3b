//go:build embed_worker

package oci

import _ "embed"

// embeddedGuest is cmd/axo-guest, which make build puts there.
//
//go:embed embedded/axo-guest
var embeddedGuest []byte
