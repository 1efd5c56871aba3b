//go:build !linux

package testvm

import (
	"errors"
	"testing"
)

// Link skips the test: only Linux has machines.
func Link(t testing.TB, _, _ string) { t.Skip("virtual machines are for Linux") }

// Try is Link for tests that do without.
func Try(_, _ string) error { return errors.New("virtual machines are for Linux") }
