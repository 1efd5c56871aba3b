//go:build !amd64

package microvm

// tscKHz: there is no time stamp counter.
func tscKHz() int { return 0 }
