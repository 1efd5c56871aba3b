package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
)

// The exit statuses that are axo's own. A program that exits by itself keeps
// its own status; one that a signal ended gets 128 and the signal's number.
const (
	exitOK       = 0
	exitUsage    = 2   // the command line is wrong
	exitTrap     = 120 // the module trapped
	exitFuel     = 121 // the fuel ran out
	exitOutput   = 122 // the output limit was exceeded
	exitLost     = 123 // what carried the program died, or some of its output may be missing
	exitTimeout  = 124 // the wall or CPU time ran out
	exitEngine   = 125 // the engine failed
	exitRefused  = 126 // no tier may run it, or the input is bad
	exitNotFound = 127 // the program or module is not there
	exitOOM      = 137 // out of memory, as a shell shows SIGKILL
)

const exitHelp = `Exit status: the program's own if it exited by itself, 128+N if signal N ended
it, and otherwise
    2  the command line is wrong
  120  the module trapped
  121  the fuel ran out
  122  the output limit was exceeded
  123  the worker that carried the program died
  124  the wall or CPU time ran out
  125  the engine failed
  126  no tier may run it, or what should run is not valid
  127  the program or module is not there
  137  out of memory`

// statusError carries an exit status; err may be nil.
type statusError struct {
	code int
	err  error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// ended is how axo ends after a program; with say it tells what the status does not.
func ended(e isolation.Exit, cause error, say bool) error {
	status := &statusError{code: statusOf(e, cause)}
	switch {
	case e.Reason != isolation.ReasonExited:
		status.err = errors.New(e.String())
	case e.Stdout.Cut || e.Stderr.Cut:
		// A caller that goes by the status would take it for whole.
		status.code, status.err = exitLost, fmt.Errorf("%v, but its output may not be whole: the sandbox went, or said nothing more, before its end", e)
	}
	if !say {
		status.err = nil
	}
	if status.code == exitOK {
		return nil
	}
	return status
}

// statusOf returns the exit status for how a program ended.
func statusOf(e isolation.Exit, cause error) int {
	switch e.Reason {
	case isolation.ReasonExited:
		return e.Code
	case isolation.ReasonSignaled:
		return 128 + int(e.Signal)
	case isolation.ReasonTimeoutWall, isolation.ReasonTimeoutCPU:
		return exitTimeout
	case isolation.ReasonOOM:
		return exitOOM
	case isolation.ReasonTrap:
		return exitTrap
	case isolation.ReasonFuelExhausted:
		return exitFuel
	case isolation.ReasonOutputLimit:
		return exitOutput
	case isolation.ReasonPolicyDenied:
		return exitRefused
	case isolation.ReasonCanceled:
		var i interrupted
		if errors.As(cause, &i) {
			return 128 + int(i.sig)
		}
		return exitEngine
	}
	return exitLost
}

// failureStatus returns the exit status for an error of the engine.
func failureStatus(ctx context.Context, err error) int {
	var i interrupted
	var refused *engine.RefusedError
	switch {
	case errors.As(context.Cause(ctx), &i):
		return 128 + int(i.sig)
	case errors.As(err, &refused):
		return exitRefused
	case errors.Is(err, isolation.ErrNotFound):
		return exitNotFound
	case errors.Is(err, isolation.ErrInvalidArgument), errors.Is(err, isolation.ErrUnsupported), errors.Is(err, isolation.ErrPermissionDenied):
		return exitRefused
	}
	return exitEngine
}
