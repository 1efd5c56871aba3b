//go:build !linux && !darwin

package none

// groupSize: that a process group has members is told, not how many.
func groupSize(int) int { return 1 }
