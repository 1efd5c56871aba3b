package isolation

import (
	"errors"
	"fmt"
	"strings"
)

// The nine classes of engine errors, for use with errors.Is. An error of none
// of them is internal. Each wire maps them in one place.
var (
	ErrNotFound           = errors.New("not found")
	ErrAlreadyExists      = errors.New("already exists")
	ErrInvalidArgument    = errors.New("invalid argument")
	ErrFailedPrecondition = errors.New("failed precondition")
	ErrUnsupported        = errors.New("unsupported")
	ErrResourceExhausted  = errors.New("resource exhausted")
	ErrUnavailable        = errors.New("unavailable")
	ErrPermissionDenied   = errors.New("permission denied")
	ErrUnauthenticated    = errors.New("unauthenticated")
)

// Classes returns the nine class sentinels in a fixed order.
func Classes() []error {
	return []error{
		ErrNotFound, ErrAlreadyExists, ErrInvalidArgument, ErrFailedPrecondition, ErrUnsupported,
		ErrResourceExhausted, ErrUnavailable, ErrPermissionDenied, ErrUnauthenticated,
	}
}

// Class returns the class of err, or nil when it has none (internal, or a
// context's error).
func Class(err error) error {
	for _, c := range Classes() {
		if errors.Is(err, c) {
			return c
		}
	}
	return nil
}

// Outcome says whether a program may have run when the engine failed.
type Outcome string

const (
	// NotStarted: no instruction of the program ran; a retry is safe.
	NotStarted Outcome = "not_started"
	// OutcomeUnknown: it may have run, wholly or in part.
	OutcomeUnknown Outcome = "outcome_unknown"
)

// Error adds to an error what was being done, by whom and to what.
type Error struct {
	Op      string  // the operation: "create", "exec", "wait", ...
	Driver  string  // the driver's Name, if one was involved
	ID      string  // the sandbox or process id, if any
	Outcome Outcome // set on errors of a run
	Err     error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Driver != "" {
		b.WriteString(e.Driver + ": ")
	}
	b.WriteString(e.Op)
	if e.ID != "" {
		b.WriteString(" " + e.ID)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// OutcomeOf returns the Outcome that err carries. An error that carries none
// gets OutcomeUnknown: doubt is not safe to retry.
func OutcomeOf(err error) Outcome {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			break
		}
		if e.Outcome != "" {
			return e.Outcome
		}
		err = e.Err
	}
	return OutcomeUnknown
}

// UnsupportedError says what is missing and what would supply it. It is of
// class [ErrUnsupported].
type UnsupportedError struct {
	Feature string // what was asked for: "python", "memory limit"
	Need    string // what would make it work: "a WASI interpreter for Python"; may be empty
}

func (e *UnsupportedError) Error() string {
	if e.Need == "" {
		return e.Feature + " is not supported"
	}
	return e.Feature + " is not supported: needs " + e.Need
}

// Is reports that the error is of class [ErrUnsupported].
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }
