package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
)

// defaultStateDir follows the XDG base directory specification; root's is the
// system's.
func defaultStateDir() string {
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "axo")
	}
	if os.Geteuid() == 0 {
		return "/var/lib/axo"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("axo-%d", os.Getuid()))
	}
	return filepath.Join(home, ".local", "state", "axo")
}

func stateDir(c *cobra.Command) (string, error) {
	dir, err := c.Flags().GetString("state-dir")
	if err != nil {
		return "", err
	}
	if dir == "" {
		dir = os.Getenv("AXO_STATE_DIR")
	}
	if dir == "" {
		dir = defaultStateDir()
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", &statusError{exitEngine, fmt.Errorf("state directory: %w; choose another with --state-dir", err)}
	}
	return dir, nil
}

// allowedEngines is what the operator allows: by flag, else by environment. None
// is no bound.
func allowedEngines(c *cobra.Command) []string {
	list, _ := c.Flags().GetStringSlice("allow-engines") // there is such a flag
	if len(list) == 0 {
		list = strings.FieldsFunc(os.Getenv("AXO_ALLOW_ENGINES"), func(r rune) bool { return r == ',' || r == ' ' })
	}
	return list
}

// probeTimeout is what AXO_PROBE_TIMEOUT says. 0: the engine's own.
func probeTimeout() (time.Duration, error) {
	v := os.Getenv("AXO_PROBE_TIMEOUT")
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("AXO_PROBE_TIMEOUT is %q: want a time above zero, such as 10s", v)
	}
	return d, nil
}

// openEngine makes the engine with all drivers, of which some things may be changed.
// The caller closes it.
func openEngine(c *cobra.Command, change ...func(*all.Config)) (*engine.Engine, error) {
	dir, err := stateDir(c)
	if err != nil {
		return nil, err
	}
	patience, err := probeTimeout()
	if err != nil {
		return nil, err
	}
	config := driverConfig(dir)
	config.Progress = func(step string) { fmt.Fprintf(c.ErrOrStderr(), "%s ...\n", step) }
	for _, f := range change {
		f(&config)
	}
	reg, err := all.Registry(config)
	if err != nil {
		return nil, &statusError{exitEngine, err}
	}
	e, err := engine.New(engine.Config{Registry: reg, StateDir: dir, ProbeTimeout: patience, Policy: engine.Policy{Engines: allowedEngines(c)}})
	if err != nil {
		for _, r := range reg.All() {
			_ = r.Driver.Close()
		}
		return nil, &statusError{exitEngine, err}
	}
	return e, nil
}

// driverConfig is how this program has its drivers.
func driverConfig(stateDir string) all.Config {
	runtimes := map[string]string{}
	for _, name := range all.Runtimes() {
		runtimes[name] = os.Getenv("AXO_" + strings.ToUpper(name) + "_PATH")
	}
	return all.Config{
		Runtimes: runtimes,
		StateDir: stateDir, Worker: os.Getenv("AXO_WASM_WORKER_PATH"), WasmtimeWorker: os.Getenv("AXO_WASMTIME_WORKER_PATH"),
		Guest: os.Getenv("AXO_GUEST_PATH"), QEMU: os.Getenv("AXO_QEMU_PATH"), Firecracker: os.Getenv("AXO_FIRECRACKER_PATH"),
	}
}
