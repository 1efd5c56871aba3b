// Package escape tries the known ways out of a container, on every engine of
// the tier that this host has. Each attack is first run outside, where it must
// get through: a wall is proved by what it stops. What a host does not allow to
// be shown is said, and fails where AXO_REQUIRE is set unless the host has
// nothing of the kind.
package escape
