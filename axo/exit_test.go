package main

import (
	"errors"
	"testing"

	"github.com/axocoatl/isolation"
)

// TestEnded: who goes by the exit status alone is told of output that may be missing.
func TestEnded(t *testing.T) {
	for name, c := range map[string]struct {
		exit isolation.Exit
		code int
		says bool
	}{
		"success":      {isolation.Exit{Reason: isolation.ReasonExited}, exitOK, false},
		"status 3":     {isolation.Exit{Reason: isolation.ReasonExited, Code: 3}, 3, false},
		"cut":          {isolation.Exit{Reason: isolation.ReasonExited, Stdout: isolation.Output{Bytes: 3, Cut: true}}, exitLost, true},
		"cut, stderr":  {isolation.Exit{Reason: isolation.ReasonExited, Code: 1, Stderr: isolation.Output{Cut: true}}, exitLost, true},
		"signal":       {isolation.Exit{Reason: isolation.ReasonSignaled, Signal: isolation.SIGTERM}, 143, true},
		"sandbox lost": {isolation.Exit{Reason: isolation.ReasonSandboxLost, Stdout: isolation.Output{Cut: true}}, exitLost, true},
	} {
		for _, say := range []bool{true, false} {
			code, said := exitOK, false
			var status *statusError
			if err := ended(c.exit, nil, say); errors.As(err, &status) {
				code, said = status.code, status.err != nil
			}
			if code != c.code || said != (say && c.says) {
				t.Errorf("%s: status %d, said %v; want %d, %v", name, code, said, c.code, say && c.says)
			}
		}
	}
}
