package wasm

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/wasm/worker"
)

// program is the worker's executable.
type program struct {
	path    string // on disk, or
	content []byte // embedded
	env     []string
	how     string // for people
	warning string
}

// reexecEnv tells a program that it was started as a worker.
const reexecEnv = "AXO_WASM_WORKER"

// servesWorkers is set by ServeIfWorker: this program can be its own worker.
var servesWorkers bool

// ServeIfWorker makes the calling program usable as its own worker, for a
// library user who ships no axo-wasm beside it. Call it first thing in main.
// In a process that was started as a worker it does not return. What the
// program's packages do in their init functions then runs before the jail
// stands: a program of its own is better, and preferred when there is one.
func ServeIfWorker() {
	if os.Getenv(reexecEnv) == "1" {
		os.Exit(worker.Main(os.Args[1:]))
	}
	servesWorkers = true
}

// executable is the file name of a program.
func executable(name string) string {
	if runtime.GOOS == "windows" {
		return name + ".exe"
	}
	return name
}

// findProgram chooses the worker: by config, embedded, beside this program, or
// this program itself.
func findProgram(c *Config, e *description) (program, error) {
	if e.linuxOnly && runtime.GOOS != "linux" {
		return program{}, &isolation.UnsupportedError{Feature: "the " + string(e.name) + " worker on " + runtime.GOOS, Need: "Linux"}
	}
	if c.Worker != "" {
		info, err := os.Stat(c.Worker)
		if err != nil || !info.Mode().IsRegular() {
			return program{}, fmt.Errorf("worker program %s: not a file (%v): %w", c.Worker, err, isolation.ErrInvalidArgument)
		}
		return program{path: c.Worker, how: c.Worker}, nil
	}
	if len(e.embedded) > 0 {
		return program{content: e.embedded, how: "embedded " + e.program}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return program{}, fmt.Errorf("find this program: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), executable(e.program))
	if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
		return program{path: beside, how: beside}, nil
	}
	if e.reexec && servesWorkers {
		return program{
			path: self, env: []string{reexecEnv + "=1"}, how: "this program, started again",
			warning: "workers are this program started again: its init functions run before the jail stands; put axo-wasm beside it",
		}, nil
	}
	return program{}, noProgram(e)
}

func noProgram(e *description) error {
	need := fmt.Sprintf("%s beside this program (%s), or its path in Config.Worker", e.program, e.make)
	if e.reexec {
		need += ", or a call of wasm.ServeIfWorker in main"
	}
	return &isolation.UnsupportedError{Feature: fmt.Sprintf("the engine %s without a worker program", e.name), Need: need}
}

// HasWorker reports whether the engine's worker program is found.
func (c Config) HasWorker() bool {
	e, ok := c.Engine.describe()
	if !ok {
		return false
	}
	_, err := findProgram(&c, &e)
	return err == nil
}
