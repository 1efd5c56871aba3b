package none

import "golang.org/x/sys/unix"

// groupSize counts the members of a process group; what it cannot tell is one.
func groupSize(pid int) int {
	const zombie = 5 // SZOMB of sys/proc.h
	all, err := unix.SysctlKinfoProcSlice("kern.proc.pgrp", pid)
	if err != nil {
		return 1
	}
	n := 0
	for _, p := range all {
		if p.Proc.P_stat != zombie {
			n++
		}
	}
	return n
}
