// Package build makes images of a description such as a Dockerfile has: from an image or
// a template, with files copied into it and programs run in it. Every step runs in a
// sandbox of its own, a container with the profile session; nothing of it runs on the
// host. What a step has changed is a layer, which is kept under a name that is made of
// all that it came from, and used again for the same steps of the same tenant.
//
// A [Builder] makes an image of a [Plan]; [Templates] keeps what tenants have built,
// under their names, and tells how a build goes.
package build
