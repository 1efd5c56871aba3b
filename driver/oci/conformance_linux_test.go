package oci_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/drivertest"
	"github.com/axocoatl/isolation/internal/testprog"
)

var (
	guestProgram string // axo-guest
	programs     string // directory with the suite's program
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "axo-oci-test-")
	if err != nil {
		panic(err)
	}
	if err := testprog.BuildCommands(dir, []string{"axo-guest"}); err != nil {
		panic(err)
	}
	guestProgram, programs = filepath.Join(dir, "axo-guest"), filepath.Join(dir, "programs")
	c := exec.Command("go", "build", "-o", programs+"/", "github.com/axocoatl/isolation/drivertest/testprogram")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := os.Mkdir(programs, 0o755); err != nil {
		panic(err)
	}
	if out, err := c.CombinedOutput(); err != nil {
		panic(string(out))
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// leftovers lists the control groups of this process's sandboxes.
func leftovers(t testing.TB) []string {
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "axo-oci-") && strings.Contains(d.Name(), strconv.Itoa(os.Getpid())) {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return out
}

func config(c oci.Config) drivertest.Config {
	return drivertest.Config{
		New: func(t testing.TB) isolation.Driver {
			c := c
			c.Guest = guestProgram
			d, err := oci.New(c)
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Command: func(p drivertest.Program, args ...string) (isolation.Spec, isolation.ProcessSpec, bool) {
			return isolation.Spec{
					Requirement: isolation.Arbitrary,
					Mounts:      []isolation.Mount{{Source: programs, Destination: "/opt/suite", ReadOnly: true}},
				},
				isolation.ProcessSpec{Args: append([]string{"/opt/suite/testprogram", string(p)}, args...)}, true
		},
		Lose: func(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
			guest, err := parentOf(p.PID())
			if err == nil {
				err = unix.Kill(guest, unix.SIGKILL)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		Leftovers: leftovers,
	}
}

func parentOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "\nPPid:")
	line, _, _ := strings.Cut(rest, "\n")
	return strconv.Atoi(strings.TrimSpace(line))
}

func TestConformanceBuiltin(t *testing.T) { drivertest.Run(t, config(oci.Config{})) }

func TestConformanceBuiltinWithoutCgroup(t *testing.T) {
	drivertest.Run(t, config(oci.Config{NoCgroup: true}))
}

func BenchmarkBuiltin(b *testing.B) { drivertest.Benchmark(b, config(oci.Config{})) }
