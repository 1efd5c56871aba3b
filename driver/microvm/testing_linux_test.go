package microvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/image/disk"
	"github.com/axocoatl/isolation/image/kernel"
	"github.com/axocoatl/isolation/internal/testprog"
)

// work is this process's directory: templates, sockets, programs.
var work string

func TestMain(m *testing.M) {
	playHost()
	var err error
	if work, err = os.MkdirTemp("", "axo-microvm-"); err != nil {
		panic(err)
	}
	code := m.Run()
	if standInRun != nil {
		standInRun.stop()
	}
	os.RemoveAll(work)
	os.Exit(code)
}

// missing skips a test for something that the host lacks, or fails it where
// AXO_REQUIRE is set.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("AXO_REQUIRE") != "" {
		t.Fatal(what)
	}
	t.Skip("SKIPPED: " + what)
}

// config is that of a driver with the tests' template, which is built once: an
// emulated machine with this host's system and the suite's program.
func config(t testing.TB) microvm.Config {
	t.Helper()
	if testVMM == standIn {
		standInOnce.Do(func() {
			standInErr = testprog.BuildPackage(filepath.Join(work, standIn), "driver/microvm/internal/standin")
		})
		if standInErr != nil {
			t.Fatal(standInErr)
		}
	}
	if err := microvm.Installed(unbuilt()); err != nil {
		missing(t, err.Error())
	}
	k := importKernel(t)
	once.Do(func() { buildErr = build(k) })
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return unbuilt()
}

func unbuilt() microvm.Config {
	c := microvm.Config{Templates: filepath.Join(work, "templates"), RunDir: filepath.Join(work, "run")}
	switch testVMM {
	case "kvm":
		c = microvm.Patient(c, kvmPatience)
	case microvm.Firecracker:
		c = microvm.Patient(c, kvmPatience)
		c.Engine, c.Firecracker = microvm.Firecracker, os.Getenv("AXO_FIRECRACKER_PATH")
	case standIn:
		c = microvm.StandIn(c, filepath.Join(work, standIn), standInPaths...)
	}
	return c
}

var (
	once        sync.Once
	buildErr    error
	standInOnce sync.Once
	standInErr  error
	builtFor    microvm.BuildConfig
)

// testVMM chooses what the tests' machines are made by, and on: "kvm" is QEMU
// with KVM, "firecracker" is Firecracker, "standin" what takes its place; "" is
// QEMU, which emulates.
var testVMM = os.Getenv("AXO_TEST_VMM")

const standIn = "standin"

// kvmPatience is for machines that are emulated twice over, on a busy host.
const kvmPatience = 3 * time.Minute

// standInPaths are what the stand-in's QEMU needs of the host.
var standInPaths = []string{"/dev/null", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache"}

// importKernel takes the kernel of the tests, or one that was taken before, of
// the store that AXO_TEST_KERNELS names.
func importKernel(t testing.TB) *kernel.Kernel {
	t.Helper()
	dir, have := os.Getenv("AXO_TEST_KERNELS"), true
	if dir == "" {
		dir, have = filepath.Join(work, "kernels"), kernels
	}
	s, err := kernel.Open(dir, kernel.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var k *kernel.Kernel
	if have {
		k, err = s.Get("")
	} else {
		k, err = s.Import(t.Context(), []string{testprog.KernelPackage(t)}, kernel.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	kernels = true
	return k
}

var kernels bool // one was imported

// machineMiB is the memory of the tests' machines: the suite's largest limits of
// memory and files fit.
const machineMiB = 768

func build(k *kernel.Kernel) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := testprog.BuildCommands(work, []string{"axo-guest"}); err != nil {
		return err
	}
	program := filepath.Join(work, "testprogram")
	if err := testprog.BuildPackage(program, "drivertest/testprogram"); err != nil {
		return err
	}
	guest, err := os.ReadFile(filepath.Join(work, "axo-guest"))
	if err != nil {
		return err
	}
	suite, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if program, err = testprog.BuildGoNative("wreck"); err != nil {
		return err
	}
	first, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	builtFor = microvm.BuildConfig{
		MemoryMiB: machineMiB,
		Accel:     "tcg", Kernel: k.VMLinux(), KernelID: k.Release, Guest: guest, Source: "the tests",
		WriteInitrd: func(w io.Writer, modules, dirs []string, files []microvm.InitFile) error {
			var list []kernel.InitrdFile
			for _, f := range files {
				if f.Name == "init" { // which starts the guest in its place
					list = append(list, kernel.InitrdFile{Name: f.Name, Mode: f.Mode, Data: bytes.NewReader(first), Size: int64(len(first))})
					f.Name = "guest"
				}
				list = append(list, kernel.InitrdFile{Name: f.Name, Mode: f.Mode, Data: bytes.NewReader(f.Data), Size: int64(len(f.Data))})
			}
			return k.WriteInitrd(w, modules, dirs, list...)
		},
		WriteDisk: func(f *os.File, temp string) error {
			if ready := os.Getenv("AXO_TEST_ROOTDISK"); ready != "" { // it has the program
				r, err := os.Open(ready)
				if err != nil {
					return err
				}
				defer r.Close()
				_, err = io.Copy(f, r)
				return err
			}
			w := disk.Create(f, temp, disk.Limits{})
			return errors.Join(w.Host(context.Background()), w.File("/opt/suite/testprogram", 0o755, suite), w.Close())
		},
		Warm: [][]string{{"/bin/sh", "-c", "exec python3 -c 'import random, uuid'"}, {"/opt/suite/testprogram", "exit0"}},
	}
	want := "tcg"
	switch testVMM {
	case "kvm": // which the build finds to work
		builtFor.Accel, want = "", "kvm"
	case microvm.Firecracker:
		builtFor.Accel, want = "kvm", "kvm"
	}
	t, err := microvm.Build(ctx, unbuilt(), builtFor)
	if err == nil && t.Shape.Accel != want {
		err = fmt.Errorf("machines are run by %s, want %s", t.Shape.Accel, want)
	}
	return err
}

func newDriver(t testing.TB, c microvm.Config) isolation.Driver {
	t.Helper()
	d, err := microvm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func create(t testing.TB, d isolation.Driver, id string, spec isolation.Spec) isolation.Sandbox {
	t.Helper()
	if spec.Requirement == isolation.Requirement(0) {
		spec.Requirement = isolation.Arbitrary
	}
	sb, err := d.Create(t.Context(), id, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return sb
}

// sh runs a script to its end, and returns what it wrote.
func sh(t testing.TB, sb isolation.Sandbox, script string) (string, isolation.Exit) {
	t.Helper()
	var out bytes.Buffer
	p, err := sb.Exec(t.Context(), isolation.ProcessSpec{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}},
		isolation.Stdio{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), e
}

// leftovers lists what the tests' machines have on the host.
func leftovers(t testing.TB) []string {
	var out []string
	entries, err := os.ReadDir(filepath.Join(work, "run"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		out = append(out, "sockets "+e.Name())
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "axo-microvm-dt-"+fmt.Sprint(os.Getpid())) {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err == nil {
		for pid := range strings.FieldsSeq(string(children)) {
			if name, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil && (strings.HasPrefix(string(name), "qemu") || string(name) == "vmm\n") {
				out = append(out, "VMM "+pid)
			}
		}
	}
	return out
}

// standsStill says that a paused VMM does not go on. A few ticks of 10 ms are its
// own: it may still be answering that it has stopped. One whose guest computes
// would take most of 50.
func standsStill(t testing.TB, pid int) {
	t.Helper()
	before := cpuOf(t, pid)
	time.Sleep(500 * time.Millisecond)
	if used := cpuOf(t, pid) - before; used > 5 {
		t.Errorf("the paused QEMU used %d ticks", used)
	}
}

// cpuOf is the processor time of a process in clock ticks (proc_pid_stat(5)).
func cpuOf(t testing.TB, pid int) (ticks int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks
}
