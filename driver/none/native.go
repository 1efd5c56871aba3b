package none

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"

	"github.com/axocoatl/isolation"
)

// New returns the engine "process".
func New(c Config) (*Driver, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	e, err := newNative(c)
	if err != nil {
		return nil, err
	}
	return newDriver(e, c.Drain), nil
}

func (e *nativeEngine) name() string { return "process" }

// nativeFeatures are those that do not depend on the system.
func nativeFeatures() isolation.Features {
	f := isolation.Features{
		Tier: isolation.TierNone, Engine: "process", Version: runtime.GOOS + "/" + runtime.GOARCH,
		Runs: []isolation.Requirement{isolation.NativeTrusted},
		Enforces: []isolation.Enforcement{
			{Limit: isolation.LimitWall, Enforced: true, By: "host timer"},
			{Limit: isolation.LimitOutput, Enforced: true, By: "host pump"},
			{Limit: isolation.LimitDisk, Reason: "the program writes to the host's own file systems"},
			{Limit: isolation.LimitFuel, Reason: "native programs have no fuel"},
		},
		Walls:   []isolation.Wall{{Name: "process", Present: true, Detail: "another address space, and nothing else: the program has all rights of its user"}},
		Options: []isolation.Option{isolation.OptionCwd},
	}
	if privileged() {
		f.Options = append(f.Options, isolation.OptionUser)
	}
	return f
}

var probes atomic.Int64

// probeProgram runs something that every system has, through all of e.
func probeProgram(ctx context.Context, e *nativeEngine, r isolation.Resources, f *isolation.Features) error {
	d := newDriver(e, e.cfg.Drain)
	id := "probe-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(probes.Add(1), 10)
	sb, err := d.Create(ctx, id, isolation.Spec{Requirement: isolation.NativeTrusted, Resources: r})
	if err != nil {
		return err
	}
	tried, err := runProbe(ctx, sb)
	if !tried {
		// A host may be as bare as an empty image and still run what it has.
		f.Warnings = append(f.Warnings, "nothing was found to try it with: no true and no sh")
	}
	return errors.Join(err, sb.Delete(context.WithoutCancel(ctx)))
}

func runProbe(ctx context.Context, sb isolation.Sandbox) (tried bool, err error) {
	candidates := [][]string{{"true"}, {"sh", "-c", ":"}}
	if runtime.GOOS == "windows" {
		candidates = [][]string{{filepath.Join(os.Getenv("SystemRoot"), "System32", "cmd.exe"), "/c", "exit 0"}}
	}
	for _, args := range candidates {
		p, err := sb.Exec(ctx, isolation.ProcessSpec{Args: args}, isolation.Stdio{})
		if errors.Is(err, isolation.ErrNotFound) {
			continue
		}
		if err != nil {
			return true, err
		}
		exit, err := p.Wait(ctx)
		if err == nil && !exit.Success() {
			err = fmt.Errorf("%q %v: %w", args, exit, isolation.ErrUnavailable)
		}
		return true, err
	}
	return false, nil
}
