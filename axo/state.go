package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/axocoatl/isolation/axo/config"
	"github.com/axocoatl/isolation/axo/policy"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/engine"
)

// stateDir is the state directory, which is made if it is not there.
func stateDir(c *cobra.Command) (string, error) {
	l, err := settings(c)
	if err != nil {
		return "", err
	}
	return makeStateDir(l)
}

func makeStateDir(l *config.Loaded) (string, error) {
	dir, err := filepath.Abs(l.StateDir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", &statusError{exitEngine, fmt.Errorf("state directory: %w; choose another with --state-dir", err)}
	}
	return dir, nil
}

// grantedHosts is what requests may ask for of the network: what the daemon is set to
// grant, and for somebody who runs a program himself all that he can reach.
func grantedHosts(c *cobra.Command, l *config.Loaded) []string {
	if !isDaemon(c) {
		return engine.AnyHost()
	}
	return l.Serve.AllowEgress
}

func isDaemon(c *cobra.Command) bool { return c.Flags().Lookup("allow-egress") != nil }

// openEngine makes the engine with all drivers, of both of which some things may be
// changed. The caller closes it.
func openEngine(c *cobra.Command, change ...func(*all.Config, *engine.Config)) (*engine.Engine, error) {
	l, err := settings(c)
	if err != nil {
		return nil, err
	}
	dc, err := driversOf(l)
	if err != nil {
		return nil, err
	}
	dc.Progress = func(step string) { fmt.Fprintf(c.ErrOrStderr(), "%s ...\n", step) }
	ec := engine.Config{StateDir: dc.StateDir, ProbeTimeout: time.Duration(l.Engine.ProbeTimeout), Policy: engine.Policy{Engines: l.Engine.Allow, Egress: grantedHosts(c, l)}}
	for _, f := range change {
		f(&dc, &ec)
	}
	reg, err := all.Registry(dc)
	if err != nil {
		return nil, &statusError{exitEngine, err}
	}
	ec.Registry = reg
	var e *engine.Engine
	if ec.Rules, err = rulesOf(c, l, ec.Logger); err == nil {
		e, err = engine.New(ec)
	}
	if err != nil {
		for _, r := range reg.All() {
			_ = r.Driver.Close()
		}
		return nil, &statusError{exitEngine, err}
	}
	return e, nil
}

// rulesOf is the policy that the operator has written; nil: none.
func rulesOf(c *cobra.Command, l *config.Loaded, logger *slog.Logger) (func(engine.Request) (engine.Policy, string, error), error) {
	if l.Engine.Policy == "" {
		return nil, nil
	}
	if logger == nil {
		logger = slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	w, err := policy.Watch(l.Engine.Policy, logger)
	if err != nil {
		return nil, err
	}
	return w.Decide, nil
}

// driverConfig is how this program has its drivers. It makes the state directory.
func driverConfig(c *cobra.Command) (all.Config, error) {
	l, err := settings(c)
	if err != nil {
		return all.Config{}, err
	}
	return driversOf(l)
}

func driversOf(l *config.Loaded) (all.Config, error) {
	dir, err := makeStateDir(l)
	p := l.Path
	return all.Config{
		Runtimes: map[string]string{"crun": p.Crun, "runc": p.Runc, "youki": p.Youki, "runsc": p.Runsc},
		StateDir: dir, Worker: p.WasmWorker, WasmtimeWorker: p.WasmtimeWorker, Guest: p.Guest, QEMU: p.QEMU, Firecracker: p.Firecracker,
	}, err
}
