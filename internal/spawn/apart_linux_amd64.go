package spawn

// canApart: a child can run on a stack of its own, in shared memory, while its
// parent goes on.
const canApart = true

//go:noescape
func rawApart(flags, parentTID, stack, c uintptr) (r uintptr)

//go:noescape
func rawApart3(args, size, c uintptr) (r uintptr)

// runApart is where a child begins that has a stack of its own. What the runtime
// would do after a fork is not done: it is about state that the parent uses.
//
//go:nosplit
//go:norace
//go:nocheckptr
func runApart(c *child) { c.run() }

//go:noescape
func rawBeside(flags, parentTID, stack, c uintptr) (r uintptr)

// runBeside is where the process beside it begins.
//
//go:nosplit
//go:norace
//go:nocheckptr
func runBeside(c *child) { c.besideRun.run() }

var _, _ = runApart, runBeside // by assembly
