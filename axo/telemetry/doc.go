// Package telemetry is how the daemon is watched: metrics for Prometheus, traces for
// OpenTelemetry, its log, and what an admin asks a running daemon by its admin socket.
//
// What callers choose is never a label: no id, path, name or text of theirs. So the
// number of series is that of tiers, engines, routes and kinds of ends, whatever
// anybody sends. Tenants are told apart only where that is configured, and so many of
// them.
package telemetry
