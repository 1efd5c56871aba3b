package isolation

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestClass(t *testing.T) {
	if len(Classes()) != 9 {
		t.Fatalf("%d classes", len(Classes()))
	}
	for _, c := range Classes() {
		for _, err := range []error{
			c,
			fmt.Errorf("wrapped: %w", c),
			&Error{Op: "create", Err: fmt.Errorf("x: %w", c)},
			errors.Join(errors.New("other"), c),
		} {
			if got := Class(err); got != c {
				t.Errorf("Class(%v) is %v, want %v", err, got, c)
			}
			for _, other := range Classes() {
				if other != c && errors.Is(err, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
		}
	}
	for _, err := range []error{nil, errors.New("not found"), context.Canceled, &Error{Op: "wait", Err: context.DeadlineExceeded}} {
		if got := Class(err); got != nil {
			t.Errorf("Class(%v) is %v, want none", err, got)
		}
	}
}

func TestErrorText(t *testing.T) {
	for want, err := range map[string]error{
		"wazero: exec job-1: not found":                 &Error{Op: "exec", Driver: "wazero", ID: "job-1", Err: ErrNotFound},
		"probe: unavailable":                            &Error{Op: "probe", Err: ErrUnavailable},
		"create a: no":                                  &Error{Op: "create", ID: "a", Outcome: NotStarted, Err: errors.New("no")},
		"python is not supported":                       &UnsupportedError{Feature: "python"},
		"python is not supported: needs an interpreter": &UnsupportedError{Feature: "python", Need: "an interpreter"},
	} {
		if err.Error() != want {
			t.Errorf("text is %q, want %q", err, want)
		}
	}
}

func TestOutcomeOf(t *testing.T) {
	inner := &Error{Op: "exec", Outcome: NotStarted, Err: ErrInvalidArgument}
	for _, c := range []struct {
		err  error
		want Outcome
	}{
		{nil, OutcomeUnknown},
		{errors.New("x"), OutcomeUnknown},
		{&Error{Op: "wait", Err: errors.New("x")}, OutcomeUnknown},
		{inner, NotStarted},
		{fmt.Errorf("run: %w", inner), NotStarted},
		{&Error{Op: "run", Err: inner}, NotStarted},                              // an outer one that says nothing
		{&Error{Op: "run", Outcome: OutcomeUnknown, Err: inner}, OutcomeUnknown}, // one that does
		{&Error{Op: "run", Err: &Error{Op: "lease", Err: fmt.Errorf("x: %w", inner)}}, NotStarted},
		{&Error{Op: "run"}, OutcomeUnknown},
		{errors.Join(errors.New("x"), inner), NotStarted},
	} {
		if got := OutcomeOf(c.err); got != c.want {
			t.Errorf("OutcomeOf(%v) is %s, want %s", c.err, got, c.want)
		}
	}
}

func TestUnsupported(t *testing.T) {
	err := error(&Error{Op: "exec", Err: fmt.Errorf("start: %w", &UnsupportedError{Feature: "a terminal", Need: "a container"})})
	if Class(err) != ErrUnsupported {
		t.Errorf("class of %v is %v", err, Class(err))
	}
	var u *UnsupportedError
	if !errors.As(err, &u) || u.Feature != "a terminal" || u.Need != "a container" {
		t.Errorf("what is missing is not found in %v", err)
	}
}
