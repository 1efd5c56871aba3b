package oci_test

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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

// builtEnv names a directory with the programs.
const builtEnv = "AXO_OCI_TEST_PROGRAMS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(builtEnv); dir != "" { // by the test that is the parent
		guestProgram, programs = filepath.Join(dir, "axo-guest"), filepath.Join(dir, "programs")
		playHost()
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "axo-oci-test-")
	if err != nil {
		panic(err)
	}
	if err := testprog.BuildCommands(dir, []string{"axo-guest"}); err != nil {
		panic(err)
	}
	guestProgram, programs = filepath.Join(dir, "axo-guest"), filepath.Join(dir, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		panic(err)
	}
	if err := testprog.BuildPackage(filepath.Join(programs, "testprogram"), "drivertest/testprogram"); err != nil {
		panic(err)
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

// hostEnv is the configuration of the driver of a process that plays a story.
const hostEnv = "AXO_OCI_TEST_HOST"

func playHost() {
	text, ok := os.LookupEnv(hostEnv)
	if !ok {
		return
	}
	var c oci.Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	drivertest.PlayHost(config(c), func() (isolation.Driver, error) { return oci.New(c) })
}

// detached gives sandboxes a place in which they outlive their maker.
func detached(t testing.TB, c oci.Config) oci.Config {
	state := t.TempDir()
	c.StateDir, c.SessionDir = filepath.Join(state, "oci"), filepath.Join(state, "sessions")
	return c
}

// asHost is this program as another host of a driver.
func asHost(t testing.TB, c oci.Config) *exec.Cmd {
	t.Helper()
	c.Guest = guestProgram
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), builtEnv+"="+filepath.Dir(guestProgram), hostEnv+"="+string(b))
	return cmd
}

func config(c oci.Config) drivertest.Config {
	dc := drivertest.Config{
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
			if p == drivertest.ReadDisk || p == drivertest.ReadOften {
				name := testprog.DiskFile(programs)
				if name == "" {
					return isolation.Spec{}, isolation.ProcessSpec{}, false
				}
				args = append(args, "/opt/suite/"+name)
			}
			return isolation.Spec{
					Requirement: isolation.Arbitrary,
					Mounts:      []isolation.Mount{{Source: programs, Destination: "/opt/suite", ReadOnly: true}},
				},
				isolation.ProcessSpec{Args: append([]string{"/opt/suite/testprogram", string(p)}, args...)}, true
		},
		Lose: func(t testing.TB, _ isolation.Driver, _ isolation.Sandbox, p isolation.Process) {
			guest, err := testprog.ParentOf(p.PID())
			if err == nil {
				err = unix.Kill(guest, unix.SIGKILL)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		Leftovers: func(t testing.TB) []string { return append(leftovers(t), sessions(t, c)...) },
	}
	if c.SessionDir != "" {
		dc.Host = func(t testing.TB, st drivertest.Story) (stdout, stderr io.Reader, kill func()) {
			return drivertest.HostProcess(t, asHost(t, c), st)
		}
	}
	return dc
}

// sessions lists what is written down of detached sandboxes, and what runtimes note.
func sessions(t testing.TB, c oci.Config) (list []string) {
	t.Helper()
	if c.SessionDir == "" {
		return nil
	}
	for _, pattern := range []string{c.SessionDir + "/*/*", c.SessionDir + "/*/.*", c.StateDir + "/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Error(err)
		}
		list = append(list, names...)
	}
	return list
}

func TestConformanceBuiltin(t *testing.T) { drivertest.Run(t, config(detached(t, oci.Config{}))) }

func TestConformanceBuiltinWithoutCgroup(t *testing.T) {
	drivertest.Run(t, config(detached(t, oci.Config{NoCgroup: true})))
}

// TestConformanceOrdinaryUser runs the suite as somebody who is not root and has
// no ranges of ids: one user, no control groups.
func TestConformanceOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestConformanceBuiltin is this test, when no root runs it")
	}
	out := asOrdinary(t, "", "^(TestConformanceBuiltin|TestOrdinary|TestSession)$")
	for _, want := range []string{"--- PASS: TestConformanceBuiltin/", "--- PASS: TestOrdinary", "--- PASS: TestSession/builtin"} {
		if !strings.Contains(out, want) {
			t.Errorf("not all was run: no %q in:\n%.3000s", want, out)
		}
	}
}

// TestConformanceGrantedUser runs what is about users as somebody who is not root
// and has been granted a range of ids.
func TestConformanceGrantedUser(t *testing.T) {
	testprog.Root(t, "to grant ids in a mount namespace of its own")
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("AXO_REQUIRE") != "" {
				t.Fatalf("needs uidmap: %v", err)
			}
			t.Skipf("SKIPPED, NOT PROVED: needs uidmap: %v", err)
		}
	}
	// The files that grant are others in there.
	dir := t.TempDir()
	grant := ""
	for name, line := range map[string]string{
		"passwd": fmt.Sprintf("granted:x:%d:%d::/:/bin/sh\n", ordinary, ordinary),
		"subuid": "granted:2000000000:131072\n", "subgid": fmt.Sprintf("%d:2000200000:65536\n", ordinary),
	} {
		file := filepath.Join(dir, name)
		b, err := os.ReadFile("/etc/" + name)
		if err == nil || os.IsNotExist(err) && name != "passwd" {
			err = os.WriteFile(file, append(b, line...), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		grant += fmt.Sprintf("touch /etc/%[2]s && mount --bind %[1]s /etc/%[2]s && ", file, name)
	}
	out := asOrdinary(t, grant, "^(TestConformanceBuiltin|TestOrdinary|TestSession|TestRunsAsSeveral)$/^(|builtin|probe|arguments|exec|kill|limits)$")
	for _, want := range []string{"--- PASS: TestConformanceBuiltin/arguments/user", "--- PASS: TestOrdinary", "--- PASS: TestSession/builtin", "--- PASS: TestRunsAsSeveral"} {
		if !strings.Contains(out, want) {
			t.Errorf("not all was run: no %q in:\n%.3000s", want, out)
		}
	}
}

// asOrdinary runs tests as a user who is not root, after commands that root runs in
// a mount namespace of their own.
func asOrdinary(t *testing.T, before, run string) string {
	t.Helper()
	exe := filepath.Join(filepath.Dir(guestProgram), "oci.test")
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	if err := os.Chown(home, ordinary, ordinary); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("unshare", "-m", "sh", "-c", before+`exec setpriv --reuid "$0" --regid "$0" --clear-groups "$@"`,
		strconv.Itoa(ordinary), exe, "-test.run", run, "-test.v")
	c.Dir = filepath.Dir(exe)
	c.Env = append(os.Environ(), builtEnv+"="+c.Dir, "HOME="+home, "TMPDIR="+os.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// ordinary is a user that nobody is.
const ordinary = 54321

func BenchmarkBuiltin(b *testing.B) { drivertest.Benchmark(b, config(oci.Config{})) }
