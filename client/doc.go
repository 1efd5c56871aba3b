// Package client is a [isolation.Driver] whose sandboxes are a daemon's (axo
// serve), over its REST interface. It has no dependencies.
//
// What it makes outlives it if Spec.Detached is set; otherwise the sandboxes go
// with the daemon, or with Close.
package client
