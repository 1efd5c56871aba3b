package isolation

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Driver makes sandboxes: one engine of one tier, or something that wraps
// others (a warm pool, a remote client). It is safe for concurrent use.
type Driver interface {
	// Name is the engine's name in results and messages: "wazero", "process",
	// "builtin", "runc", "firecracker". It never changes.
	Name() string

	// Probe finds out by running something what this engine can do here. It
	// is bounded by ctx and leaves nothing behind. When the engine cannot
	// work on this host the error says why and how to mend it (classes
	// Unsupported, Unavailable, PermissionDenied); the static parts of
	// Features (Tier, Engine, Runs) are set even then.
	Probe(ctx context.Context) (Features, error)

	// Create makes a sandbox that is ready for Exec. The id is the caller's
	// and must satisfy [ValidateID]; one that is in use is AlreadyExists.
	// What the driver does not implement of spec is Unsupported, never
	// ignored. On error, and on cancellation, nothing is left behind.
	Create(ctx context.Context, id string, spec Spec) (Sandbox, error)

	// Close deletes every sandbox but those whose Spec is Detached, and releases
	// what the driver holds. It waits for the driver's own goroutines and
	// processes. It is idempotent; Create after Close is FailedPrecondition, and
	// sandboxes are as after Delete. Detached ones go on without this driver:
	// who waits for a process of theirs learns that its outcome is unknown.
	Close() error
}

// Sandbox is one isolated place. It is safe for concurrent use.
type Sandbox interface {
	// ID returns the id given to Create.
	ID() string

	// State tells the sandbox's status. After Delete it is NotFound.
	State(ctx context.Context) (State, error)

	// Exec starts a process. ctx bounds the start only: when it ends before
	// the process has started, nothing was started and the error says
	// NotStarted. So do refusals: bad ProcessSpecs are InvalidArgument or
	// Unsupported; an ExecID in use is AlreadyExists; in a sandbox that is
	// stopped Exec is FailedPrecondition, after Delete it is NotFound.
	Exec(ctx context.Context, p ProcessSpec, stdio Stdio) (Process, error)

	// Delete ends whatever still runs (those processes' Exit has the reason
	// canceled) and removes the sandbox with all it left. It is legal from
	// every state and idempotent. It returns when nothing is left, or when
	// ctx ends, in which case it may be called again. A ctx that has ended
	// begins it all the same. A warm pool returns when no process is left and
	// removes the rest behind the caller's back.
	Delete(ctx context.Context) error
}

// Process is one running or ended program. It is safe for concurrent use.
type Process interface {
	// ID returns the ExecID: the caller's, or one that the driver made.
	ID() string

	// PID returns the host's process id of the program, or of the worker or
	// VMM that carries it; 0 when there is none of its own.
	PID() int

	// Kill sends a signal. A tier without signals takes those whose default
	// action is to end the process, and refuses others as Unsupported. Kill
	// of an ended process does nothing and returns nil.
	Kill(ctx context.Context, sig Signal) error

	// Wait returns the Exit once the process ended and its output was
	// delivered: no write to Stdio happens after that. Any number of callers
	// may wait; ctx ends the wait, not the process. It does not wait for
	// background children that hold the output open (see Exit.Survivors).
	Wait(ctx context.Context) (Exit, error)
}

// Stdio connects a process to its caller. The driver always puts pipes or
// sockets of its own between the two; the caller's descriptors never enter the
// sandbox.
type Stdio struct {
	// Stdin is read ahead only by a bounded amount, and not at all once the
	// process ended. nil is empty input. A Read that is blocked when the
	// process ends does not hold up Wait; its goroutine goes when it returns.
	Stdin io.Reader
	// Stdout and Stderr get the output, each by one goroutine at a time. A
	// writer that blocks slows the program down (back-pressure), and stops
	// neither limits nor Kill nor Delete. Once the process ended, each Write
	// has at least 100 ms; one that is still blocked then is given up, no
	// further one begins, and what it had and what was left count as dropped.
	// So a slow writer gets all, and a stuck one does not hold up Wait for
	// long. A writer that returns an error gets nothing more; the rest is
	// counted and dropped. nil counts and drops.
	// Both may be the same writer only if it is safe for concurrent use.
	Stdout, Stderr io.Writer
}

// Status is a sandbox's status, in the words of the OCI runtime specification
// (runtime.md, "State"); paused is ours.
type Status string

// The statuses.
const (
	StatusCreating Status = "creating"
	StatusCreated  Status = "created" // no process runs
	StatusRunning  Status = "running" // at least one process runs
	StatusPaused   Status = "paused"
	StatusStopped  Status = "stopped" // lost or being deleted: Exec cannot work
)

// State describes a sandbox at one moment.
type State struct {
	ID      string    `json:"id"`
	Status  Status    `json:"status"`
	Execs   []string  `json:"execs,omitempty"` // ExecIDs of live processes, sorted
	Created time.Time `json:"created"`
}

// maxIDLen keeps ids usable as file, cgroup and host names.
const maxIDLen = 64

// ValidateID checks a sandbox or process id: 1 to 64 of [A-Za-z0-9._-],
// beginning with a letter or a digit. So an id is safe as a file name. The
// error is of class [ErrInvalidArgument].
func ValidateID(id string) error {
	if id == "" || len(id) > maxIDLen {
		return fmt.Errorf("id %.80q: want 1 to %d characters: %w", id, maxIDLen, ErrInvalidArgument)
	}
	for i, c := range []byte(id) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return fmt.Errorf("id %q: want letters, digits, '.', '_' and '-', a letter or digit first: %w", id, ErrInvalidArgument)
		}
	}
	return nil
}
