// Package image keeps container images: it pulls them from registries, imports
// them from files, unpacks their layers once, and removes what nothing uses.
//
// A [Store] is a directory. An image is a manifest, a config and layers, each a
// blob named by its SHA-256; a layer is unpacked to a directory named by its
// diff id, the SHA-256 of its uncompressed tar. Blobs and layers are made under
// temporary names and renamed when they are complete and verified, so what has
// its final name is whole. An index names images. Several processes may use one
// directory at the same time.
//
// One story: Open a store; Pull "alpine:3", which downloads what is not there
// and unpacks it; Get it later by name, digest or a unique prefix; RootFS gives
// the unpacked layers for an overlay mount, and a lease on them; Release the
// lease; Remove the image; GC deletes what no image, no lease and no running
// pull needs.
//
// Everything that comes from outside is hostile: manifests, configs, layers and
// the registry itself. [Limits] bounds what it can cost, and no entry of a layer
// reaches anything outside of that layer's directory.
package image
