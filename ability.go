package isolation

import (
	"context"
	"net"
	"time"
)

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
	AbilityPorts    = "ports"  // PortDialer
	AbilityListen   = "listen" // PortListener
)

// Attacher is an ability of a Sandbox, of one whose Spec is Detached at least: a
// process is found again by its ExecID, by another caller or after the host
// side restarted.
//
// Output is held up to a bound of the driver's, 64 KiB of each stream at least.
// What was written is dropped from there when it is older than that and all who
// are attached have it; while one of them has not, the process is held back. So
// it is in a recovered sandbox until somebody attaches: what was not delivered
// when the host side ended is there still. Of the processes that have ended the
// last 16 at least are known.
type Attacher interface {
	// Attach delivers the output of execID to stdio, from the given byte
	// offsets on, beside those who get it already, and returns the process,
	// which may have ended. An offset that was already dropped is
	// FailedPrecondition, one beyond what was written InvalidArgument, an
	// unknown ExecID NotFound. In the Exit that this caller gets, what he was not
	// given from his offsets on counts as dropped.
	//
	// A stdio.Stdin that is not nil goes on with the input of a process to which
	// nobody gives any, since the host side that did has ended. It begins at
	// from.Stdin, and what the process has been given from there on is read and
	// skipped. FailedPrecondition: somebody gives input, or it has ended, or the
	// process has. InvalidArgument: it begins beyond what was given.
	Attach(ctx context.Context, execID string, from Offsets, stdio Stdio) (Process, error)
}

// Offsets are positions in the streams of a process, in bytes from its start.
type Offsets struct {
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
	// Stdin is where the reader of an Attach begins; -1: where the process's
	// input ends by now.
	Stdin int64 `json:"stdin,omitempty"`
}

// Pauser is an ability of a Sandbox: its processes stop using the CPU and keep
// their memory. While paused, Exec is FailedPrecondition; limits on wall time
// do not run.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Snapshotter is an ability of a Sandbox: it writes the sandbox whole (memory and
// disk) under a name of the caller's, atomically. The sandbox goes on as it was, or
// stays paused.
type Snapshotter interface {
	// Snapshot returns when the snapshot is on the disk. A name that is taken is
	// AlreadyExists. A driver that cannot keep running processes is Unsupported
	// while one runs.
	Snapshot(ctx context.Context, name string) error
}

// Restorer is an ability of a Driver: it makes a sandbox from a snapshot, as often as
// it is asked. What must differ between copies (randomness, clock, names of the
// machine) is renewed before anything runs in it.
//
// The sandbox has the Spec of that which was written, and its processes, which go on
// under their ids. What they write from then on is this sandbox's own, and held back
// until somebody attaches ([Attacher]); what was held of their output then is held
// still. Nobody gives them input before that. Their limits go on with what was left.
type Restorer interface {
	// Restore: a snapshot that is not there is NotFound. FailedPrecondition: it
	// was changed, or this host or what is installed on it is another than what
	// wrote it.
	Restore(ctx context.Context, id, snapshot string) (Sandbox, error)
	// Snapshots lists what there is, by name.
	Snapshots(ctx context.Context) ([]SnapshotInfo, error)
	// RemoveSnapshot removes one. Sandboxes that were made of it go on.
	RemoveSnapshot(ctx context.Context, name string) error
}

// SnapshotInfo tells of a snapshot.
type SnapshotInfo struct {
	Name  string
	Taken time.Time
	Bytes int64 // on the disk
	// Stopped is how long the sandbox stood still for it, Took what all of it took.
	Stopped, Took time.Duration
	Spec          Spec
	Execs         []string // ids of the processes that run in it
	// Err says why it cannot be restored here; what cannot be read is zero then.
	Err error
}

// Forker is an ability of a Sandbox: n copies that run, one id each. With what is in
// them it is as with sandboxes that [Restorer] makes. The sandbox itself goes on as
// it was, or stays paused. On error there are no copies.
type Forker interface {
	Fork(ctx context.Context, ids []string) ([]Sandbox, error)
}

// Recoverer is an ability of a Driver: sandboxes whose Spec is Detached are found
// again after the host side has ended, by whoever comes next. One process has a
// sandbox at a time.
type Recoverer interface {
	// Recoverable lists the detached sandboxes of this engine that this driver
	// does not have, by id. An error says that the list could not be read at all.
	Recoverable(ctx context.Context) ([]Recoverable, error)

	// Recover makes a sandbox this driver's. Its limits, and those of its
	// processes, are held from then on; a process that is past its limit by then
	// is ended for it. One that is not there, or does not live any more, is
	// NotFound, and nothing is left of it; AlreadyExists: this driver has it.
	// FailedPrecondition: another has it, or it cannot be told what it was: then
	// nothing is touched. Unavailable: it lives and does not answer.
	Recover(ctx context.Context, id string) (Sandbox, error)
}

// Discarder is an ability of a Driver that is a Recoverer: it ends and removes a
// detached sandbox that nobody has without recovering it, as when its inside does
// not answer or is of another version. One that is not there is NotFound; one that
// somebody has, or of which it cannot be told what it was, is FailedPrecondition.
type Discarder interface {
	Discard(ctx context.Context, id string) error
}

// Recoverable is a detached sandbox that a driver finds and does not have.
type Recoverable struct {
	ID      string
	Created time.Time
	// Holder is the process that has it; 0: none.
	Holder int
	// Err says why it cannot be recovered although nobody has it: it does not
	// live any more (NotFound), or what is written about it cannot be read.
	Err error
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

// PortDialer is an ability of a Sandbox: connections to what listens inside it.
type PortDialer interface {
	// DialPort connects to a TCP port of the sandbox's loopback address, 127.0.0.1
	// or else ::1. ctx bounds the connecting only. FailedPrecondition: nobody
	// listens there; ResourceExhausted: there are too many connections.
	//
	// The connection has the method CloseWrite() error besides, which ends one
	// direction as shutdown(2) does. It ends with the sandbox, and, unlike a
	// process of a detached one, with the host side.
	DialPort(ctx context.Context, port uint16) (net.Conn, error)
}

// PortListener is an ability of a Sandbox: the host side serves connections that
// programs inside make to a port of their own loopback address, which is the only
// address that they have.
type PortListener interface {
	// ListenPort listens on a TCP port of 127.0.0.1 inside the sandbox. When it
	// returns, programs can connect. AlreadyExists: something inside listens there.
	// ctx bounds the call. After Close of the listener nobody can connect.
	ListenPort(ctx context.Context, port uint16) (net.Listener, error)
}
