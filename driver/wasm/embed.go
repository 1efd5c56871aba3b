//go:build embed_worker

package wasm

import _ "embed"

// embeddedWorker is cmd/axo-wasm, which make build puts there.
//
//go:embed embedded/axo-wasm
var embeddedWorker []byte
