package oci_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
)

const groupFS = "/sys/fs/cgroup"

// moves counts what is moved between control groups of version 2 while f runs.
// The kernel tells of each (tracefs, cgroup/cgroup_attach_task); what is made in a
// group is not moved.
func moves(t *testing.T, f func()) int {
	t.Helper()
	const tracing = "/sys/kernel/tracing"
	set := func(file, value string) {
		if err := os.WriteFile(filepath.Join(tracing, file), []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	const event = "events/cgroup/cgroup_attach_task/enable"
	set("trace", "")
	set(event, "1")
	defer set(event, "0")
	f()
	b, err := os.ReadFile(filepath.Join(tracing, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "cgroup_attach_task:")
}

// TestProgramsAreMadeInTheirGroup: where control groups are of version 2 nobody
// is moved into one, which would take milliseconds after a rest, and programs see
// their group as the root.
func TestProgramsAreMadeInTheirGroup(t *testing.T) {
	var st unix.Statfs_t
	if err := unix.Statfs(groupFS, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("control groups are of version 1; make test-cgroup2 runs this test")
	}
	own := groupFS + strings.TrimPrefix(strings.TrimSpace(readFile(t, "/proc/self/cgroup")), "0::")
	control := moves(t, func() {
		dir := filepath.Join(filepath.Dir(own), fmt.Sprintf("axo-test-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{dir, own} {
			if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte("0"), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	})
	if control < 2 {
		t.Fatalf("%d moves were told of, and there were 2", control)
	}
	for _, profile := range []string{"default", "session"} {
		t.Run(profile, func(t *testing.T) {
			d := newDriver(t, oci.Config{})
			spec := isolation.Spec{Profile: profile, Resources: isolation.Resources{MemoryBytes: 64 << 20, Pids: 20, CPUs: 1}}
			if profile == "session" {
				spec.Root.Path = imageRoot(t)
			}
			n := moves(t, func() {
				for range 3 {
					if r := sh(t, d, spec, isolation.ProcessSpec{}, "cat /proc/self/cgroup"); r.out != "0::/\n" {
						t.Errorf("%v; the program is in %q", r.exit, r.out)
					}
				}
			})
			if n != 0 {
				t.Errorf("%d moves", n)
			}
		})
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
