package spawn

// canApart: a child can run on a stack of its own, in shared memory, while its
// parent goes on.
const canApart = true

//go:noescape
func rawApart(flags, parentTID, stack, c uintptr) (r uintptr)
