//go:build !linux

package oci

import (
	"context"
	"os"
	"runtime"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
)

// New returns an engine that says that containers need Linux.
func New(c Config) (*Driver, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	return proc.New(nowhere{}, c.Drain), nil
}

type nowhere struct{}

func (nowhere) unsupported() error {
	return &isolation.UnsupportedError{Feature: "containers on " + runtime.GOOS, Need: "Linux"}
}

func (nowhere) Name() string { return "builtin" }

func (nowhere) Features() isolation.Features {
	return isolation.Features{Tier: isolation.TierOCI, Engine: "builtin"}
}

func (n nowhere) Probe(context.Context, *isolation.Features) error { return n.unsupported() }
func (n nowhere) Check(isolation.Spec) error                       { return n.unsupported() }
func (n nowhere) CheckProcess(isolation.ProcessSpec) error         { return n.unsupported() }
func (n nowhere) Create(context.Context, string, isolation.Spec) (proc.Place, error) {
	return nil, n.unsupported()
}
func (nowhere) Close() error { return nil }

func memoryFile(string, []byte) (*os.File, error) { return nil, nowhere{}.unsupported() }
