package isolation

import "context"

// As finds an ability in v or in what v wraps. Wrappers (pools, proxies) let
// their inner value be found by a method Unwrap() any. What As finds must
// agree with Features.Abilities.
func As[T any](v any) (T, bool) {
	for v != nil {
		if t, ok := v.(T); ok {
			return t, true
		}
		w, ok := v.(interface{ Unwrap() any })
		if !ok {
			break
		}
		v = w.Unwrap()
	}
	var zero T
	return zero, false
}

// The names of abilities in Features.Abilities.
const (
	AbilityAttach   = "attach"
	AbilityPause    = "pause"
	AbilitySnapshot = "snapshot"
	AbilityRestore  = "restore"
	AbilityFork     = "fork"
	AbilityRecover  = "recover"
	AbilityReset    = "reset"
	AbilityResize   = "resize"
	AbilityFiles    = "files"
	AbilityWatch    = "watch"
	AbilityStats    = "stats"
	AbilityPrepare  = "prepare"
)

// Attacher is an ability of a Sandbox: a process is found again by its ExecID,
// by another caller or after the host side restarted.
type Attacher interface {
	// Attach delivers the output of execID to stdio, from the given byte
	// offsets on, and returns the process, which may have ended. Output is
	// held up to a bound: an offset that was already dropped is
	// FailedPrecondition, one beyond what was written InvalidArgument, an
	// unknown ExecID NotFound. A nil stdio.Stdin leaves stdin as it is.
	Attach(ctx context.Context, execID string, from Offsets, stdio Stdio) (Process, error)
}

// Offsets are positions in the output of a process, in bytes from its start.
type Offsets struct {
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// Pauser is an ability of a Sandbox: its processes stop using the CPU and keep
// their memory. While paused, Exec is FailedPrecondition; limits on wall time
// do not run.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Snapshotter is an ability of a Sandbox: it writes the sandbox whole (memory
// and disk) under a name of the caller's, atomically.
type Snapshotter interface {
	Snapshot(ctx context.Context, name string) error
}

// Restorer is an ability of a Driver: it makes a sandbox from a snapshot. What
// must differ between clones (randomness, clock, names) is renewed before the
// first Exec.
type Restorer interface {
	Restore(ctx context.Context, id, snapshot string) (Sandbox, error)
}

// Forker is an ability of a Sandbox: n running copies, one id each.
type Forker interface {
	Fork(ctx context.Context, ids []string) ([]Sandbox, error)
}

// Recoverer is an ability of a Driver: after a restart of the host side it
// finds a sandbox that still lives. One that does not is NotFound.
type Recoverer interface {
	Recover(ctx context.Context, id string) (Sandbox, error)
}

// Resetter is an ability of a Sandbox: it is made as new, so that a pool may
// hand it out again. After an error the sandbox must be deleted.
type Resetter interface {
	Reset(ctx context.Context) error
}

// Preparer is an ability of a Sandbox: an interpreter is started before its
// program is there.
type Preparer interface {
	// Prepare starts the interpreter of a language ("python") and returns when
	// it is ready. The next Exec of code for it becomes that process instead of
	// starting another: `python3 -c CODE [ARG...]` for the sandbox's own user,
	// without a terminal and without environment that the interpreter would
	// have looked at when it started; one that does not fit is started as ever.
	// It serves once, so nothing of one program is seen by another. A sandbox
	// without the interpreter is NotFound, a language that cannot be prepared
	// Unsupported.
	Prepare(ctx context.Context, language string) error
}

// Resizer is an ability of a Process with a terminal.
type Resizer interface {
	Resize(ctx context.Context, size TerminalSize) error
}

// Stats is an ability of a Sandbox: what it uses now, and used in all.
type Stats interface {
	Stats(ctx context.Context) (Usage, error)
}
