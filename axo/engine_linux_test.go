package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/internal/testprog"
)

// TestEngineOfContainers: a request or a policy names the engine, and gets that
// one or none.
func TestEngineOfContainers(t *testing.T) {
	h := newHost(t)
	if !haveContainers(t, []string{"AXO_GUEST_PATH=" + h.dir + "/axo-guest"}) {
		t.Skip("SKIPPED, NOT PROVED: no containers here")
	}
	type result struct{ Engine, Stdout string }
	run := func(t *testing.T, env []string, args ...string) (res result, said string, err error) {
		t.Helper()
		cmd := h.axo(append(args, "--json", "--shell", "echo hi")...)
		cmd.Env = append(os.Environ(), env...)
		var errOut strings.Builder
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err == nil {
			if err := json.Unmarshal(out, &res); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		return res, errOut.String() + string(out), err
	}
	for _, name := range all.Runtimes() {
		t.Run(name, func(t *testing.T) {
			path := "AXO_" + strings.ToUpper(name) + "_PATH="
			here := []string{path + testprog.Runtime(t, name)}
			for _, flag := range []string{"--engine", "--allow-engines"} {
				res, said, err := run(t, here, flag, name)
				if err != nil || res.Stdout != "hi\n" || res.Engine != name {
					t.Errorf("%s %s: %v, %q by %s: %s", flag, name, err, res.Stdout, res.Engine, said)
				}
				// One that does not work is not replaced by another.
				_, said, err = run(t, []string{path + "/no/such/runtime"}, flag, name)
				exit, ok := err.(*exec.ExitError)
				if !ok || exit.ExitCode() != 126 || !strings.Contains(said, name) || strings.Contains(said, `"stdout": "hi`) {
					t.Errorf("%s %s without its program: %v: %s", flag, name, err, said)
				}
			}
			_, said, err := run(t, here, "--allow-engines", name, "--engine", "builtin")
			if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 126 {
				t.Errorf("another engine than the policy's: %v: %s", err, said)
			}
		})
	}
}
