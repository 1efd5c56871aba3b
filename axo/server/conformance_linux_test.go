package server_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/server"
	"github.com/axocoatl/isolation/axo/session"
	"github.com/axocoatl/isolation/axo/tenant"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/engine"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// withPrograms has the suite's program in each sandbox: over the wire nobody gets a
// directory of the host.
type withPrograms struct {
	isolation.Driver
	dir  string
	copy bool // it is copied: a mount would be a disk of each machine
}

// Unwrap lets isolation.As find abilities.
func (w withPrograms) Unwrap() any { return w.Driver }

// Create implements isolation.Driver.
func (w withPrograms) Create(ctx context.Context, id string, spec isolation.Spec) (isolation.Sandbox, error) {
	if !w.copy {
		spec.Mounts = append(slices.Clone(spec.Mounts), isolation.Mount{Source: w.dir, Destination: "/tmp/suite", ReadOnly: true})
		return w.Driver.Create(ctx, id, spec)
	}
	sb, err := w.Driver.Create(ctx, id, spec)
	if err == nil {
		if err = engine.CopyIn(ctx, sb, engine.Copy{Host: w.dir, Guest: "/tmp/suite"}); err != nil {
			err = errors.Join(err, sb.Delete(context.WithoutCancel(ctx)))
			sb = nil
		}
	}
	return sb, err
}

// real has daemons with one of the engines that a host really has.
type real struct {
	engine   string
	dir      string // of their state directories
	guest    string
	programs string
}

// start has a daemon serve, and returns a client that ends it when it is closed.
func (r real) start(t testing.TB) isolation.Driver {
	t.Helper()
	state, err := os.MkdirTemp(r.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if r.engine == "qemu" {
		testvm.Link(t, state, r.guest)
	}
	drivers, err := all.Registry(all.Config{StateDir: state, Guest: r.guest})
	if err != nil {
		t.Fatal(err)
	}
	var reg isolation.Registry
	for _, x := range drivers.All() {
		if x.Driver.Name() == r.engine {
			reg.Add(x.Tier, withPrograms{x.Driver, r.programs, r.engine == "qemu"})
		} else if err := x.Driver.Close(); err != nil {
			t.Fatal(err)
		}
	}
	e, err := engine.New(engine.Config{Registry: reg, StateDir: state, ProbeTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan []string, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- server.Run(ctx, server.Config{
			StateDir: state, Engine: e, Drain: 5 * time.Second, Ready: func(a []string) { ready <- a },
			// Little is kept, so that who does not read is seen to hold a program back.
			Sessions: session.Config{Keep: 1 << 20},
		})
	}()
	var addresses []string
	select {
	case addresses = <-ready:
	case err := <-ended:
		cancel()
		t.Fatal(err)
	}
	b, err := os.ReadFile(tenant.TokenPath(state))
	if err != nil {
		t.Fatal(err)
	}
	d, err := client.New(client.Config{Address: addresses[0], Key: strings.TrimSpace(string(b)), Engine: r.engine, AllowEmulated: true})
	if err != nil {
		t.Fatal(err)
	}
	return &served{d, sync.OnceValue(func() error { cancel(); return <-ended })}
}

// served ends its daemon when it is closed.
type served struct {
	*client.Driver
	end func() error
}

// Close implements isolation.Driver.
func (s *served) Close() error { return errors.Join(s.Driver.Close(), s.end()) }

// left lists what there is of sandboxes on the host.
func (r real) left(t testing.TB) (list []string) {
	for _, pattern := range []string{"sessions/*/*", "serve/[^.]*", "journal/*", "oci/*"} {
		names, err := filepath.Glob(filepath.Join(r.dir, "*", pattern))
		if err != nil {
			t.Error(err)
		}
		list = append(list, names...)
	}
	return list
}

// TestConformance holds what a client sees of a daemon to what every driver does, with
// the engines of a host beneath it. Each passes the whole suite by itself: a machine is
// asked here what the wire has to do with.
func TestConformance(t *testing.T) {
	testprog.Root(t, "for sandboxes with control groups and for machines")
	dir := t.TempDir()
	programs := filepath.Join(dir, "programs")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(programs, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := testprog.BuildPackage(filepath.Join(programs, "testprogram"), "drivertest/testprogram"); err != nil {
		t.Fatal(err)
	}
	guest := testprog.Guest(t)
	for _, c := range []struct {
		engine string
		groups []string
		lose   func(pid int) (int, error) // which process carries a program
	}{
		{"builtin", nil, testprog.ParentOf},
		{"qemu", []string{"exec", "abilities"}, func(pid int) (int, error) { return pid, nil }},
	} {
		t.Run(c.engine, func(t *testing.T) {
			r := real{engine: c.engine, dir: t.TempDir(), guest: guest, programs: programs}
			dc := drivertest.Config{
				New: r.start,
				Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
					if p == drivertest.ReadDisk || p == drivertest.ReadOften {
						return isolation.Spec{}, isolation.ProcessSpec{}, false // the driver's own suite has them
					}
					return isolation.Spec{Requirement: isolation.Arbitrary}, isolation.ProcessSpec{Args: append([]string{"/tmp/suite/testprogram", string(p)}, args...)}, true
				},
				Lose: func(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
					pid, err := c.lose(p.PID())
					if err == nil {
						err = unix.Kill(pid, unix.SIGKILL)
					}
					if err != nil {
						t.Fatal(err)
					}
				},
				Leftovers: r.left, Large: 8 << 20, Parallel: 4, Groups: c.groups,
			}
			if c.engine == "qemu" {
				dc.Large, dc.Patience = 4<<20, 90*time.Second
			}
			drivertest.Run(t, dc)
		})
	}
}
