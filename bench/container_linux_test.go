package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/internal/testprog"
)

func command(b *testing.B, args ...string) {
	c := exec.Command(args[0], args[1:]...)
	c.WaitDelay = time.Second // for the output of processes that a runtime left
	if out, err := c.CombinedOutput(); err != nil {
		b.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// limited is a sandbox with all limits on.
var limited = isolation.Spec{
	Requirement: isolation.Shell,
	Resources:   isolation.Resources{MemoryBytes: 256 << 20, Pids: 64, CPUs: 2, DiskBytes: 64 << 20},
}

// cold makes a container, runs /bin/true in it, and removes it.
func cold(b *testing.B, d isolation.Driver, id string) {
	sb, err := d.Create(context.Background(), id, limited)
	if err != nil {
		b.Fatal(err)
	}
	must(b, sb, "/bin/true")
	remove(b, sb)
}

// BenchmarkCold is a new container for /bin/true, with everything on, against
// fork and exec of it on the host, and against other programs that make
// containers, as far as they are installed.
func BenchmarkCold(b *testing.B) {
	d := containers(b)
	b.Cleanup(func() { d.Close() })
	n := 0
	all := []contender{
		plain("host", func() { command(b, "/bin/true") }),
		plain("builtin", func() { n++; cold(b, d, "cold-"+strconv.Itoa(n)) }),
	}
	if path, err := exec.LookPath("bwrap"); err == nil {
		all = append(all, plain("bwrap", func() {
			command(b, path, "--unshare-all", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
				"--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--cap-drop", "ALL", "/bin/true")
		}))
	}
	spec, err := exec.LookPath("runc")
	for _, name := range oci.Runtimes() {
		path, ferr := testprog.FindRuntime(name)
		if ferr != nil || err != nil {
			b.Logf("%s: SKIPPED: %v %v", name, err, ferr)
			continue
		}
		run := []string{path}
		switch name {
		case "crun": // it refuses hosts with both versions of control groups
			run = []string{"unshare", "-m", "sh", "-c", `umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"`, "sh", path}
		case "youki", "runsc":
			// The one waits for ever if a program ends at once, the other's default
			// container does not start here. BenchmarkColdEngines has both.
			continue
		}
		run = append(run, "run", "--bundle", ociBundle(b, spec))
		all = append(all, plain(name, func() {
			n++
			command(b, append(run, fmt.Sprintf("bench-%d-%d", os.Getpid(), n))...)
		}))
	}
	both(b, all...)
}

// BenchmarkColdEngines is BenchmarkCold for each engine of the container tier: the
// same container, guest and limits, made by other programs.
func BenchmarkColdEngines(b *testing.B) {
	d := containers(b)
	b.Cleanup(func() { d.Close() })
	n := 0
	cold := func(d isolation.Driver) func() {
		return func() { n++; cold(b, d, "cold-"+strconv.Itoa(n)) }
	}
	all := []contender{plain("builtin", cold(d))}
	for _, name := range oci.Runtimes() {
		path, err := testprog.FindRuntime(name)
		if err != nil {
			b.Logf("%s: SKIPPED: %v", name, err)
			continue
		}
		d, err := oci.New(oci.Config{Engine: name, Runtime: path, Guest: testprog.Guest(b), StateDir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { d.Close() })
		all = append(all, plain(name, cold(d)))
	}
	both(b, all...)
}

// ociBundle is a bundle of a runtime's own default container, on the host's system
// directories, that runs /bin/true.
func ociBundle(b *testing.B, runtime string) string {
	b.Helper()
	dir := b.TempDir()
	cmd := exec.Command(runtime, "spec")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	file := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(file)
	var c specs.Spec
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		b.Fatal(err)
	}
	c.Process.Terminal, c.Process.Args = false, []string{"/bin/true"}
	for _, d := range []string{"/usr", "/bin", "/lib", "/lib64"} {
		if _, err := os.Stat(d); err == nil {
			c.Mounts = append(c.Mounts, specs.Mount{Destination: d, Source: d, Type: "bind", Options: []string{"rbind", "ro", "nosuid", "nodev"}})
		}
	}
	if data, err = json.Marshal(c); err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755)
	}
	for _, d := range []string{"usr", "bin", "lib", "lib64", "proc", "sys", "dev"} {
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return dir
}

// BenchmarkColdPhases tells where the time of a cold run goes.
func BenchmarkColdPhases(b *testing.B) {
	d := containers(b)
	b.Cleanup(func() { d.Close() })
	var took [3]time.Duration
	n := 0
	used := cpuUsed()
	for b.Loop() {
		n++
		t0 := time.Now()
		sb, err := d.Create(context.Background(), "phase-"+strconv.Itoa(n), limited)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		must(b, sb, "/bin/true")
		t2 := time.Now()
		remove(b, sb)
		took[0] += t1.Sub(t0)
		took[1] += t2.Sub(t1)
		took[2] += time.Since(t2)
	}
	for i, name := range []string{"create", "run", "delete"} {
		b.ReportMetric(float64(took[i].Microseconds())/float64(n), name+"-us")
	}
	b.ReportMetric(float64((cpuUsed()-used).Microseconds())/float64(n), "cpu-us")
}

// cpuUsed is the CPU time of this process and of the children that have ended.
func cpuUsed() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	return sum
}

// BenchmarkColdThroughput makes cold runs on all cores.
func BenchmarkColdThroughput(b *testing.B) {
	d := containers(b)
	b.Cleanup(func() { d.Close() })
	var mu sync.Mutex
	n := 0
	began := time.Now()
	b.SetParallelism(2)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n++
			id := "through-" + strconv.Itoa(n)
			mu.Unlock()
			cold(b, d, id)
		}
	})
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "runs/s")
}

// BenchmarkProgram is axo run as a whole process.
func BenchmarkProgram(b *testing.B) {
	dir := b.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo", "axo-guest"}); err != nil {
		b.Fatal(err)
	}
	axo := filepath.Join(dir, "axo")
	state := filepath.Join(dir, "state")
	run := func() { command(b, axo, "run", "--state-dir", state, "--engine", "builtin", "--", "true") }
	run() // probes
	both(b, plain("host", func() { command(b, "/bin/true") }), plain("version", func() { command(b, axo, "version") }), plain("run", run))
}

// BenchmarkKill ends a sandbox with 1,000 processes, and one with none.
func BenchmarkKill(b *testing.B) {
	d := containers(b)
	b.Cleanup(func() { d.Close() })
	for _, count := range []int{1000, 0} {
		b.Run(strconv.Itoa(count), func(b *testing.B) {
			n := 0
			var took time.Duration
			for b.Loop() {
				b.StopTimer()
				n++
				sb, err := d.Create(context.Background(), "kill-"+strconv.Itoa(n), shell)
				if err != nil {
					b.Fatal(err)
				}
				if count > 0 {
					must(b, sb, "/bin/sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do (sleep 1000 >/dev/null 2>&1 </dev/null &) ; i=$((i+1)); done", count))
				}
				b.StartTimer()
				began := time.Now()
				remove(b, sb)
				took += time.Since(began)
			}
			b.ReportMetric(float64(took.Microseconds())/float64(n), "delete-us")
		})
	}
}
