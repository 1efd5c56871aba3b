package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/pool"
)

// containers makes the container driver, with a guest built for it.
func containers(b *testing.B) isolation.Driver {
	b.Helper()
	dir := b.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo-guest"}); err != nil {
		b.Fatal(err)
	}
	d, err := oci.New(oci.Config{Guest: filepath.Join(dir, "axo-guest")})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := d.Probe(context.Background()); err != nil {
		b.Skipf("SKIPPED: containers do not work here: %v", err)
	}
	return d
}

var shell = isolation.Spec{Requirement: isolation.Shell}

// must runs a program in a sandbox.
func must(b *testing.B, sb isolation.Sandbox, args ...string) {
	p, err := sb.Exec(context.Background(), isolation.ProcessSpec{Args: args, Limits: isolation.Limits{Wall: time.Minute}}, isolation.Stdio{})
	if err != nil {
		b.Fatal(err)
	}
	if e, err := p.Wait(context.Background()); err != nil || !e.Success() {
		b.Fatal(e, err)
	}
}

func remove(b *testing.B, sb isolation.Sandbox) {
	if err := sb.Delete(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// pooled makes a pool. full waits until its shelf is full and nothing else goes
// on; claim takes a sandbox.
func pooled(b *testing.B, t pool.Template) (full func(), claim func() isolation.Sandbox) {
	b.Helper()
	p, err := pool.New(pool.Config{Driver: containers(b), Templates: []pool.Template{t}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	})
	n := 0
	full = func() {
		for p.Stats().Idle < t.Size || p.Stats().Removing > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	return full, func() isolation.Sandbox {
		n++
		sb, err := p.Create(context.Background(), "bench-"+strconv.Itoa(n), t.Spec)
		if err != nil {
			b.Fatal(err)
		}
		return sb
	}
}

// BenchmarkWarmExec: /bin/true in a pooled container, the claim included,
// against fork and exec of it on the host.
func BenchmarkWarmExec(b *testing.B) {
	full, claim := pooled(b, pool.Template{Spec: shell, Size: 1})
	both(b,
		plain("host", func() {
			if err := exec.Command("/bin/true").Run(); err != nil {
				b.Fatal(err)
			}
		}),
		contender{"pooled", func(b *testing.B) (func(), func()) {
			full()
			return func() {
				sb := claim()
				must(b, sb, "/bin/true")
				remove(b, sb)
			}, func() {}
		}},
		contender{"exec", func(b *testing.B) (func(), func()) {
			full()
			sb := claim()
			full()
			must(b, sb, "/bin/true")
			return func() { must(b, sb, "/bin/true") }, func() { remove(b, sb) }
		}},
	)
}

// BenchmarkPython: a Python one-liner in a pooled container whose interpreter
// waits, and in one without, against python3 on the host.
func BenchmarkPython(b *testing.B) {
	if _, err := exec.LookPath("/usr/bin/python3"); err != nil {
		b.Skip("SKIPPED: no /usr/bin/python3 here")
	}
	python := func(t pool.Template) func(b *testing.B) (func(), func()) {
		full, claim := pooled(b, t)
		return func(b *testing.B) (func(), func()) {
			full()
			sb := claim()
			full()
			return func() { must(b, sb, "/usr/bin/python3", "-c", "pass") }, func() { remove(b, sb) }
		}
	}
	both(b,
		plain("host", func() {
			if err := exec.Command("/usr/bin/python3", "-c", "pass").Run(); err != nil {
				b.Fatal(err)
			}
		}),
		contender{"warm", python(pool.Template{Spec: shell, Size: 1})},
		contender{"prepared", python(pool.Template{Spec: isolation.Spec{Requirement: isolation.Python}, Size: 1, Prepare: "python"})},
	)
}

// BenchmarkIdleContainer: the private memory of a container that waits, and of
// one with an interpreter started.
func BenchmarkIdleContainer(b *testing.B) {
	for _, prepare := range []string{"", "python"} {
		b.Run(fmt.Sprintf("prepare=%q", prepare), func(b *testing.B) {
			const count = 10
			p, err := pool.New(pool.Config{Driver: containers(b), Templates: []pool.Template{{Spec: shell, Size: count, Prepare: prepare}}})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			for p.Stats().Idle < count {
				time.Sleep(time.Millisecond)
			}
			for b.Loop() {
				b.ReportMetric(float64(privateOf(b, os.Getpid()))/count/1024, "KiB/sandbox")
			}
		})
	}
}

// privateOf sums the private memory of all processes below one, in bytes.
func privateOf(b *testing.B, parent int) (sum int64) {
	b.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := testprog.ParentOf(pid); err != nil || p != parent {
			continue
		}
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(rollup)) {
			if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[0], "Private_") {
				n, _ := strconv.ParseInt(f[1], 10, 64)
				sum += n << 10
			}
		}
		sum += privateOf(b, pid)
	}
	return sum
}
