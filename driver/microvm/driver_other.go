//go:build !linux

package microvm

import (
	"context"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// New returns an engine that says what it needs.
func New(c Config) (isolation.Driver, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	return proc.New(absent{c.engine()}, c.Drain), nil
}

var errNoLinux = proc.Unsupported("microVMs on this system", "Linux")

type absent struct{ engine string }

func (a absent) Name() string                                   { return a.engine }
func (absent) Close() error                                     { return nil }
func (absent) Probe(context.Context, *isolation.Features) error { return errNoLinux }
func (absent) Check(isolation.Spec) error                       { return errNoLinux }
func (absent) CheckProcess(isolation.ProcessSpec) error         { return errNoLinux }
func (a absent) Features() isolation.Features {
	return isolation.Features{Tier: isolation.TierMicroVM, Engine: a.engine}
}
func (absent) Create(context.Context, string, isolation.Spec) (proc.Place, error) {
	return nil, errNoLinux
}

// Build fails: see [New].
func Build(context.Context, Config, BuildConfig) (*Template, error) { return nil, errNoLinux }

// Installed: see [New].
func Installed(Config) error { return errNoLinux }

// Check fails: see [New].
func Check(context.Context, Config, string) error { return errNoLinux }
