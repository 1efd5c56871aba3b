package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/testprog"
)

// worker is the axo-wasm that the scripts' axo uses; the process that runs axo
// itself finds it in the environment.
var worker = os.Getenv("AXO_WASM_WORKER_PATH")

// guest is the same for axo-guest.
var guest = os.Getenv("AXO_GUEST_PATH")

func TestMain(m *testing.M) {
	// On a busy host an engine that works may not show it in time. (This program
	// is also the axo of scripts.)
	if os.Getenv("AXO_PROBE_TIMEOUT") == "" {
		os.Setenv("AXO_PROBE_TIMEOUT", "1m")
	}
	testscript.Main(m, map[string]func(){"axo": func() { os.Exit(Main()) }})
}

// haveContainers reports whether axo can run containers here, with all that it
// has of limits and users. Where they are required their absence is for the
// scripts to fail on.
func haveContainers(t testing.TB, env []string) bool {
	t.Helper()
	axo, err := exec.LookPath("axo")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(axo, "doctor", "--json", "--state-dir", t.TempDir())
	cmd.Env = append(os.Environ(), env...)
	out, _ := cmd.Output() // its status is about all tiers
	var reports []engine.EngineReport
	if err := json.Unmarshal(out, &reports); err != nil {
		t.Fatalf("axo doctor: %v: %s", err, out)
	}
	return os.Getenv("AXO_REQUIRE") != "" || slices.ContainsFunc(reports, func(r engine.EngineReport) bool {
		return r.OK && r.Tier == isolation.TierOCI && r.Features.Has(isolation.OptionUser) && r.Features.Enforcement(isolation.LimitMemory).Enforced
	})
}

func TestScripts(t *testing.T) {
	worker, guest := worker, guest // what is made here goes with this test
	if worker == "" {
		worker = testprog.Worker(t)
	}
	if guest == "" {
		guest = testprog.Guest(t)
	}
	programs := map[string]string{
		"TOOL": testprog.Go(t, "tool"), "CONFORM": testprog.Go(t, "conform"), "CSVSUM": testprog.Go(t, "csvsum"),
		"SHA256": testprog.Go(t, "sha256"), "CAT": testprog.Go(t, "cat"), "FLOOD": testprog.Wat(t, "flood"),
	}
	for _, m := range []string{"tiny", "exit7", "loop", "unreachable", "memgrow", "empty", "truncated", "garbage", "nostart", "badimport", "component"} {
		programs["MOD_"+m] = testprog.Wat(t, m)
	}
	interpreters := interpreterModules(t)
	maps.Copy(programs, interpreters)
	wasmtime, err := testprog.BuildWasmtime()
	if errors.Is(err, testprog.ErrNoCompiler) && os.Getenv("AXO_REQUIRE") == "" {
		t.Logf("SKIPPED, a tool is missing: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	programs["WASMTIME_WORKER"] = wasmtime
	kernel := testprog.FindKernelPackage()
	containers := sync.OnceValue(func() bool {
		return haveContainers(t, []string{"AXO_WASM_WORKER_PATH=" + worker, "AXO_GUEST_PATH=" + guest})
	})
	if testprog.FindBusybox() != "" || os.Getenv("AXO_REQUIRE") != "" {
		programs["ROOTFS"] = filepath.Join(t.TempDir(), "root.tar")
		if err := os.WriteFile(programs["ROOTFS"], testprog.RootFS(t), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if programs["EXAMPLES"], err = filepath.Abs("../examples/tools"); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "kernel":
				return kernel != "", nil
			case "container":
				return containers(), nil
			case "wasmtime":
				return wasmtime != "", nil
			case "interpreters":
				return len(interpreters) > 0, nil
			case "rootfs":
				return programs["ROOTFS"] != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("AXO_WASM_WORKER_PATH", worker)
			e.Setenv("AXO_GUEST_PATH", guest)
			e.Setenv("KERNEL_DEB", kernel)
			e.Setenv("AXO_STATE_DIR", filepath.Join(e.WorkDir, "state"))
			e.Setenv("AXO_PROBE_TIMEOUT", os.Getenv("AXO_PROBE_TIMEOUT"))
			for k, v := range programs {
				e.Setenv(k, v)
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "bytes"), []byte{0xff, 0}, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// status N CMD...: the command's exit status is N.
			"status": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: status N CMD ARG...")
				}
				err := ts.Exec(args[1], args[2:]...)
				got := "0"
				if exit, ok := err.(*exec.ExitError); ok {
					got = strconv.Itoa(exit.ExitCode())
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if got != args[0] {
					ts.Fatalf("exit status is %s, want %s", got, args[0])
				}
			},
			// expand FROM TO: a copy with the script's variables in it.
			"expand": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 2 {
					ts.Fatalf("usage: expand FROM TO")
				}
				text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
			},
			// waitfor FILE: until it is there.
			"waitfor": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: waitfor FILE")
				}
				for range 1000 {
					if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
				ts.Fatalf("%s does not come", args[0])
			},
			// fetch FILE PATH: what is at PATH of the HTTP server whose address FILE has.
			"fetch": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 2 {
					ts.Fatalf("usage: fetch FILE PATH")
				}
				var err error
				for range 1000 {
					var resp *http.Response
					var b []byte
					if b, err = os.ReadFile(ts.MkAbs(args[0])); err == nil {
						if resp, err = http.Get("http://" + strings.TrimSpace(string(b)) + args[1]); err == nil {
							defer resp.Body.Close()
							_, err = io.Copy(ts.Stdout(), resp.Body)
							ts.Check(err)
							return
						}
					}
					time.Sleep(20 * time.Millisecond)
				}
				ts.Fatalf("no answer: %v", err)
			},
			// zeros N FILE: a sparse file of N bytes.
			"zeros": func(ts *testscript.TestScript, _ bool, args []string) {
				f, err := os.Create(ts.MkAbs(args[1]))
				ts.Check(err)
				n, err := parseSize(args[0])
				ts.Check(err)
				ts.Check(f.Truncate(n))
				ts.Check(f.Close())
			},
		},
	})
}

// interpreterModules finds the interpreters that scripts install, or none where
// the tools to get them are missing.
func interpreterModules(t *testing.T) map[string]string {
	python, err := testprog.BuildPython()
	var quickjs string
	if err == nil {
		quickjs, err = testprog.BuildQuickJS()
	}
	if errors.Is(err, testprog.ErrNoCompiler) && os.Getenv("AXO_REQUIRE") == "" {
		t.Logf("SKIPPED, a tool is missing: %v", err)
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"PYTHON_PACKAGE": filepath.Join(filepath.Dir(python), "python.tgz"), "QUICKJS": quickjs}
}
