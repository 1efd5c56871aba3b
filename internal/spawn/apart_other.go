//go:build linux && !amd64

package spawn

const canApart = false

func rawApart(_, _, _, _ uintptr) uintptr { panic("spawn: not on this architecture") }

func rawApart3(_, _, _ uintptr) uintptr { panic("spawn: not on this architecture") }

func rawBeside(_, _, _, _ uintptr) uintptr { panic("spawn: not on this architecture") }
