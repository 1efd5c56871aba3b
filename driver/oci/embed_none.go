//go:build !embed_worker

package oci

// embeddedGuest is set in builds with the tag embed_worker.
var embeddedGuest []byte
