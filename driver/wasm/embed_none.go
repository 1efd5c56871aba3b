//go:build !embed_worker

package wasm

// embeddedWorker is set in builds with the tag embed_worker.
var embeddedWorker []byte
