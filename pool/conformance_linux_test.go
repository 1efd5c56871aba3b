package pool_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/pool"
)

// TestConformanceContainers runs the suite on containers that stand ready: the
// program is part of their root, since what has mounts is never made ahead.
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
			p, err := pool.New(pool.Config{Driver: containerDriver(t, guest), Learn: 2})
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, p)
			return p
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			return isolation.Spec{Requirement: isolation.Arbitrary, Root: isolation.Root{Path: root}},
				// What a root of its own sets where it is missing.
				isolation.ProcessSpec{Args: append([]string{"/testprogram", string(p)}, args...), Env: []string{"HOME=/", "PATH=/bin"}}, true
		},
		Lose: func(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
			_, rest, _ := strings.Cut(string(status), "\nPPid:")
			line, _, _ := strings.Cut(rest, "\n")
			first, aerr := strconv.Atoi(strings.TrimSpace(line))
			if err == nil && aerr == nil {
				err = unix.Kill(first, unix.SIGKILL)
			}
			if err != nil || aerr != nil {
				t.Fatal(err, aerr)
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
