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
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// Driver is one of the two engines. It implements [isolation.Driver].
type Driver = proc.Driver

// New returns the engine "process".
func New(c Config) (*Driver, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	e, err := newNative(c)
	if err != nil {
		return nil, err
	}
	return proc.New(e, c.Drain), nil
}

func (e *nativeEngine) Name() string { return "process" }

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
	d := proc.New(e, e.cfg.Drain)
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

// checkSpec refuses what neither engine has.
func checkSpec(spec isolation.Spec) error {
	const boundary = "a tier with a boundary (wasm, oci, microvm)"
	switch {
	case spec.Requirement != isolation.NativeTrusted:
		return proc.Unsupported("requirement "+spec.Requirement.String(), boundary+": tier none runs trusted built-ins only")
	case !spec.Module.IsZero():
		return proc.Unsupported("a module", "the wasm tier")
	case !spec.Root.IsZero():
		return proc.Unsupported("a root file system", "the oci or microvm tier")
	case len(spec.Mounts) > 0:
		return proc.Unsupported("mounts", boundary)
	case spec.Hostname != "":
		return proc.Unsupported("a hostname", "the oci or microvm tier")
	case spec.Profile == "session":
		return proc.Unsupported("profile session", "the oci or microvm tier")
	case spec.Language != "":
		return proc.Unsupported("language "+spec.Language, boundary)
	case spec.Resources.DiskBytes > 0:
		return proc.Unsupported("disk limit", "a file system of the sandbox's own (oci, microvm)")
	}
	return nil
}

// checkProcess refuses what neither engine has.
func checkProcess(p isolation.ProcessSpec) error {
	switch {
	case p.Terminal:
		return proc.Unsupported("a terminal", "the oci or microvm tier")
	case p.Limits.Fuel > 0:
		return proc.Unsupported("fuel limit", "the wasm tier")
	}
	return nil
}
