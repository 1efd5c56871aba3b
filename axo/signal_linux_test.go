package main

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation/internal/testprog"
)

// TestSignals interrupts axo while something runs: it ends what runs, says so,
// keeps the output so far, leaves nothing, and exits as a shell expects.
func TestSignals(t *testing.T) {
	h := newHost(t)
	ready := []string{testprog.Go(t, "conform"), "ready", "60"}
	native := []string{"--native", "--", testprog.GoNative(t, "conform"), "ready", "60"}
	for _, c := range []struct {
		name   string
		sig    syscall.Signal
		args   []string
		status int
	}{
		{"wasm", syscall.SIGINT, ready, 130},
		{"wasm", syscall.SIGTERM, ready, 143},
		{"native", syscall.SIGINT, native, 130},
		{"native", syscall.SIGTERM, native, 143},
	} {
		t.Run(c.name+"/"+c.sig.String(), func(t *testing.T) {
			cmd := h.axo(c.args...)
			stdin, err := cmd.StdinPipe() // never written, never closed
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			var errOut bytes.Buffer
			cmd.Stderr = &errOut
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			watch := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
			defer watch.Stop()
			line := make([]byte, len("ready\n"))
			if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
				t.Fatalf("%q %v %s", line, err, errOut.Bytes())
			}
			if err := cmd.Process.Signal(c.sig); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, out)
			err = cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.status {
				t.Errorf("%v, want status %d; stderr %s", err, c.status, errOut.Bytes())
			}
			if !strings.Contains(errOut.String(), "canceled") {
				t.Errorf("stderr does not tell: %q", errOut.String())
			}
			h.clean(t, cmd.Process.Pid)
		})
	}
}
