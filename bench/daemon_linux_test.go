package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/client"
	"github.com/axocoatl/isolation/internal/testprog"
	"github.com/axocoatl/isolation/test/testvm"
)

// served is a daemon in a process of its own.
type served struct {
	axo, state string
	args       []string
	cmd        *exec.Cmd
	*client.Driver
}

func serve(b *testing.B, args ...string) *served {
	b.Helper()
	dir := b.TempDir()
	if err := testprog.BuildCommands(dir, []string{"axo", "axo-guest"}); err != nil {
		b.Fatal(err)
	}
	s := &served{axo: filepath.Join(dir, "axo"), state: filepath.Join(dir, "state"), args: append([]string{"serve"}, args...)}
	s.args = append(s.args, "--state-dir", s.state)
	s.start(b)
	b.Cleanup(func() {
		s.Close()
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_ = s.cmd.Wait()
	})
	return s
}

// start starts the daemon and returns when it answers.
func (s *served) start(b *testing.B) (took time.Duration) {
	b.Helper()
	s.cmd = exec.Command(s.axo, s.args...)
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	socket := filepath.Join(s.state, "axo.sock")
	for i := 0; ; i++ {
		if key, err := os.ReadFile(filepath.Join(s.state, "token")); err == nil {
			if s.Driver == nil {
				if s.Driver, err = client.New(client.Config{Address: (&url.URL{Scheme: "unix", Path: socket}).String(), Key: strings.TrimSpace(string(key)), Engine: "builtin"}); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := s.Health(b.Context()); err == nil {
				return time.Since(began)
			}
		}
		if i > 30_000 {
			b.Fatal("the daemon does not answer")
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *served) run(b *testing.B, sb isolation.Sandbox, stdio isolation.Stdio, args ...string) {
	b.Helper()
	p, err := sb.Exec(context.Background(), isolation.ProcessSpec{Args: args}, stdio)
	if err != nil {
		b.Fatal(err)
	}
	if exit, err := p.Wait(context.Background()); err != nil || !exit.Success() {
		b.Fatal(exit, err)
	}
}

func (s *served) create(b *testing.B, id string, detached bool) isolation.Sandbox {
	b.Helper()
	sb, err := s.Create(context.Background(), id, isolation.Spec{Requirement: isolation.Shell, Detached: detached})
	if err != nil {
		b.Fatal(err)
	}
	return sb
}

// reportMillis tells the median and the worst of a hundred.
func reportMillis(b *testing.B, took []time.Duration, name string) {
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, name+"-p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, name+"-p99-ms")
}

// createAndFirst makes sandboxes when so many stand ready, and runs a command in each.
func (s *served) createAndFirst(b *testing.B, ready int) {
	one := func(i int) time.Duration {
		began := time.Now()
		sb := s.create(b, fmt.Sprintf("create-%d-%d-%d", ready, b.N, i), true)
		s.run(b, sb, isolation.Stdio{}, "/bin/true")
		took := time.Since(began)
		if err := sb.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
		return took
	}
	if ready > 0 {
		one(-1) // from now on they are made ahead
	}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		for ready > 0 {
			pools, err := s.Pools(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			idle := 0
			for _, p := range pools {
				idle += p.Idle
			}
			if idle >= ready {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		took = append(took, one(i))
	}
	reportMillis(b, took, "first")
}

// BenchmarkDaemonMachine is the same for virtual machines that stand ready, emulated
// where there is no KVM.
func BenchmarkDaemonMachine(b *testing.B) {
	guest := testprog.Guest(b)
	b.Setenv("AXO_GUEST_PATH", guest)
	s := serve(b, "--warm-vms", "2")
	testvm.Link(b, s.state, guest)
	vm := isolation.TierMicroVM
	d, err := client.New(client.Config{Address: "unix://" + filepath.Join(s.state, "axo.sock"), Key: s.key(b), Tier: &vm, AllowEmulated: true})
	if err != nil {
		b.Fatal(err)
	}
	s.Close()
	s.Driver = d
	s.createAndFirst(b, 2)
}

func (s *served) key(b *testing.B) string {
	b.Helper()
	key, err := os.ReadFile(filepath.Join(s.state, "token"))
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(key))
}

// BenchmarkDaemon is what a Go client of axo serve sees, on the unix socket.
func BenchmarkDaemon(b *testing.B) {
	s := serve(b)
	b.Run("CreateAndFirst", func(b *testing.B) { s.createAndFirst(b, 2) })
	b.Run("CreateAndFirstCold", func(b *testing.B) { serve(b, "--warm", "0").createAndFirst(b, 0) })
	b.Run("Exec", func(b *testing.B) {
		sb := s.create(b, fmt.Sprintf("exec-%d", b.N), true)
		var took []time.Duration
		for b.Loop() {
			began := time.Now()
			s.run(b, sb, isolation.Stdio{}, "/bin/true")
			took = append(took, time.Since(began))
		}
		reportMillis(b, took, "exec")
		if err := sb.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("Files", func(b *testing.B) {
		sb := s.create(b, fmt.Sprintf("files-%d", b.N), true)
		files, ok := isolation.As[isolation.Files](sb)
		if !ok {
			b.Fatal("no files")
		}
		content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		b.SetBytes(2 << 20)
		for b.Loop() {
			if err := files.WriteFile(context.Background(), "/tmp/f", 0o600, bytes.NewReader(content)); err != nil {
				b.Fatal(err)
			}
			r, err := files.ReadFile(context.Background(), "/tmp/f")
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); err != nil || n != 1<<20 {
				b.Fatal(n, err)
			}
			r.Close()
		}
		if err := sb.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("Stdout", func(b *testing.B) {
		sb := s.create(b, fmt.Sprintf("stdout-%d", b.N), true)
		const size = 256 << 20
		b.SetBytes(size)
		for b.Loop() {
			s.run(b, sb, isolation.Stdio{Stdout: io.Discard}, "/bin/dd", "if=/dev/zero", "bs=1M", "count=256", "status=none")
		}
		b.ReportMetric(float64(peakRSS(b, s.cmd.Process.Pid))/(1<<20), "daemon-peak-MiB")
		if err := sb.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkDaemonStart is the daemon's own: ready, idle, and ready again with 100
// sandboxes after a SIGKILL.
func BenchmarkDaemonStart(b *testing.B) {
	s := serve(b)
	for b.Loop() {
		b.ReportMetric(float64(rss(b, s.cmd.Process.Pid))/(1<<20), "idle-MiB")
		const count = 100
		var all []isolation.Sandbox
		for i := range count {
			all = append(all, s.create(b, fmt.Sprintf("adopt-%d", i), true))
		}
		if err := s.cmd.Process.Kill(); err != nil {
			b.Fatal(err)
		}
		_ = s.cmd.Wait()
		b.ReportMetric(s.start(b).Seconds()*1000, "adopt-100-ms")
		list, err := s.Sandboxes(b.Context(), nil)
		if err != nil || len(list) != count {
			b.Fatal(len(list), err)
		}
		for i, sb := range list {
			if sb.Status != "running" {
				b.Fatalf("%+v", sb)
			}
			if err := all[i].Delete(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			b.Fatal(err)
		}
		_ = s.cmd.Wait()
		b.ReportMetric(s.start(b).Seconds()*1000, "ready-ms")
	}
	b.ReportMetric(0, "ns/op")
}

func rss(b *testing.B, pid int) int64     { return statusKiB(b, pid, "VmRSS:") << 10 }
func peakRSS(b *testing.B, pid int) int64 { return statusKiB(b, pid, "VmHWM:") << 10 }

func statusKiB(b *testing.B, pid int, field string) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("/proc/%d/status has no %s", pid, field)
	return 0
}
