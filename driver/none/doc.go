// Package none is tier 0: no boundary at all, for programs that the operator
// trusts as much as the host itself. What it gives is bookkeeping that tells
// the truth: limits that the host holds, output that is counted, ends that are
// named, and nothing left behind.
//
// Two engines share it. [New] makes "process": native programs, each in a
// session of its own. [NewFunc] makes "func": Go functions that the embedding
// program registered, run as goroutines of that program.
//
// # What ends a process
//
// The first of these that happens is the reason, settled by one atomic
// exchange: a limit (wall, cpu, output) or the deletion of the sandbox. A
// cause only counts when it is what ended the program: one that exited by
// itself while the kill was on its way has exited. The exception is the output
// limit, which is about what was written and so holds whichever came first.
// Where no cause of the driver's ended it, the kernel's own account decides
// (out of memory, a signal, an exit status).
//
// # What belongs to a process
//
// Children may leave their process group, their session and their parent.
// Where there is a cgroup, its members are the sandbox. Which process of them
// belongs to which Exec, and everything where there is no cgroup, is told by
// a brand: a value of RLIMIT_RTTIME that is too large to limit anything and
// unique to the Exec. Resource limits are inherited by fork and exec and
// survive setsid, a double fork, a cleared environment and a changed process
// title. An environment variable would do as much only until somebody clears
// it, and would break the promise that the environment is exactly what was
// asked for. PR_SET_CHILD_SUBREAPER would catch orphans as well, but it is a
// setting of the whole process: a library that set it would hand its host
// children to reap that the host never started.
package none
