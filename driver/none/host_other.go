//go:build !unix

package none

import "errors"

var errNotDir = errors.New("not a directory")

// privileged: there are no uids to change to.
func privileged() bool { return false }
