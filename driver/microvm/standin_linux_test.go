package microvm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/internal/testprog"
)

// TestStandIn runs tests of this package again on the engine firecracker, with
// what takes Firecracker's place where there is no KVM (package standin): its API,
// in order and in form, snapshot and restore, the vsock handshake and all that
// comes after it, of machines that are real. AXO_TEST_VMM=standin runs all tests
// so.
func TestStandIn(t *testing.T) {
	if testVMM != "" {
		t.Skip("this is it")
	}
	config(t) // says what the host lacks
	startStandIn(t)
	<-standInRun.done
	if err := standInRun.err; err != nil || strings.Contains(standInRun.out.String(), "no tests to run") {
		t.Errorf("%v\n%s", err, standInRun.out.String())
	}
}

// besideRun is a run of tests in another process.
type besideRun struct {
	stop func() // waits for its end
	done chan struct{}
	out  bytes.Buffer // once it is done
	err  error
}

var standInRun *besideRun // nil: not started

// startStandIn starts what TestStandIn waits for, once. Each of its machines keeps
// one processor busy, as each of TestConformance's does.
func startStandIn(t *testing.T) {
	t.Helper()
	if standInRun != nil {
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const run = "^(TestGuest|TestDirs|TestClonesDiffer|TestLost|TestTemplateIsChecked)$|^TestConformance$/^(probe|lifecycle|exec)$"
	ctx, cancel := context.WithCancel(context.Background()) // it outlives this test
	r := &besideRun{done: make(chan struct{})}
	r.stop = func() { cancel(); <-r.done }
	c := exec.CommandContext(ctx, self, "-test.run="+run, "-test.count=1")
	c.Env = append(os.Environ(), "AXO_TEST_VMM="+standIn)
	c.Stdout, c.Stderr = &r.out, &r.out
	if err := c.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	standInRun = r
	go func() {
		defer close(r.done)
		r.err = c.Wait()
	}()
}

// TestHalfMade: a Firecracker that is none, and one that cannot start its machine,
// leave nothing.
func TestHalfMade(t *testing.T) {
	config(t)
	program := filepath.Join(t.TempDir(), standIn)
	if err := testprog.BuildPackage(program, "driver/microvm/internal/standin"); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := leftovers(t)
	for name, change := range map[string]func(c *microvm.Config, b *microvm.BuildConfig) error{
		"none": func(c *microvm.Config, _ *microvm.BuildConfig) error {
			c.Firecracker = "/bin/true"
			return isolation.ErrFailedPrecondition
		},
		"no kernel": func(_ *microvm.Config, b *microvm.BuildConfig) error { b.Kernel = kernel; return nil },
	} {
		c := microvm.StandIn(unbuilt(), program, standInPaths...)
		c.Templates = t.TempDir()
		b := builtFor
		b.Accel = ""
		want := change(&c, &b)
		_, err := microvm.Build(t.Context(), c, b)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if entries, err := os.ReadDir(c.Templates); err != nil || len(entries) != 1 { // the lock
			t.Errorf("%s: %v, %v", name, entries, err)
		}
		if after := leftovers(t); !slices.Equal(before, after) {
			t.Errorf("%s: %q is there, %q was", name, after, before)
		}
	}
}
