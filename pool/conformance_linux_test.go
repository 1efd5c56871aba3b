package pool_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/pool"
)

// oneImage is a store of one image, whose only layer is a directory.
type oneImage string

func (oneImage) digest() string { return "sha256:" + strings.Repeat("1", 64) }

func (i oneImage) Open(_ context.Context, ref string) (*oci.RootFS, error) {
	if ref != i.digest() {
		return nil, isolation.ErrNotFound
	}
	return &oci.RootFS{Digest: ref, Layers: []string{string(i)}}, nil
}

func (oneImage) TempDir() (string, func() error, error) {
	dir, err := os.MkdirTemp("", "axo-pool-")
	return dir, func() error { return os.Remove(dir) }, err
}

// TestConformanceContainers runs the suite on containers that stand ready: the
// program is part of an image, since what has directories of the host is never
// made ahead.
func TestConformanceContainers(t *testing.T) {
	root := t.TempDir()
	err := os.Chmod(root, 0o755)
	if err == nil {
		err = os.Mkdir(filepath.Join(root, "tmp"), 0o777)
	}
	if err == nil {
		err = os.Chmod(filepath.Join(root, "tmp"), 0o1777)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("go", "build", "-o", filepath.Join(root, "testprogram"), "github.com/axocoatl/isolation/drivertest/testprogram")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	guest := guestProgram(t)
	var made []*pool.Pool
	drivertest.Run(t, drivertest.Config{
		New: func(t testing.TB) isolation.Driver {
			p, err := pool.New(pool.Config{Driver: containerDriver(t, guest, oneImage(root)), Learn: 2})
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, p)
			return p
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			if p == drivertest.ReadDisk || p == drivertest.ReadOften {
				return isolation.Spec{}, isolation.ProcessSpec{}, false // a file on a device is in a directory of the host
			}
			return isolation.Spec{Requirement: isolation.Arbitrary, Root: isolation.Root{Image: oneImage("").digest()}},
				// What an image's root sets where it is missing.
				isolation.ProcessSpec{Args: append([]string{"/testprogram", string(p)}, args...), Env: []string{"HOME=/", "PATH=/bin"}}, true
		},
		Lose: func(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
			first, err := testprog.ParentOf(p.PID())
			if err == nil {
				err = unix.Kill(first, unix.SIGKILL)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	})
	hits := int64(0)
	for _, p := range made {
		hits += p.Stats().Hits
	}
	if hits < 10 {
		t.Errorf("%d sandboxes came from a shelf: the suite has not tried the pool", hits)
	}
}
