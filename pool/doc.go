// Package pool keeps sandboxes ready. A [Pool] is a driver around a driver:
// Create hands out a sandbox that was made, and warmed, before anybody asked,
// and makes one on the spot only when none is ready.
//
// # Shelves
//
// Sandboxes that are alike stand on one shelf: same Spec, whoever the tenant
// is. A shelf is there because the configuration names a [Template], or
// because such a sandbox was asked for; one that was learned in that way is
// given up when nobody asks any more.
//
// # Freshness
//
// What stands on a shelf has run nothing but its template's warm-up. It is
// handed out once, to one caller, and deleted after that: no sandbox that ran
// a tenant's code comes back. So a shelf serves all tenants, and needs no
// trust in a clean-up.
//
// # Off the caller's path
//
// Sandboxes are made, warmed, aged and removed by goroutines of the pool's own;
// nothing slow happens under its lock. One whose making fails is tried again
// after a pause that doubles. Delete of a sandbox in which nothing runs returns
// at once and the removal follows; [Pool.Close] waits for it. At most
// Config.MaxRemovals are under way: more, and Delete waits.
package pool
