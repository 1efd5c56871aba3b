package none_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/none"
	"github.com/axocoatl/isolation/internal/cgroup"
)

func init() {
	helpers["bomb"] = func(args []string) int { // forks until it is refused; says how many there were
		n := 0
		for range 500 {
			if err := exec.Command("/bin/sleep", args[0]).Start(); err != nil {
				break
			}
			n++
		}
		fmt.Println(n)
		return 0
	}
}

// skip says loudly what is missing, and fails where it was required.
func skip(t testing.TB, format string, a ...any) {
	t.Helper()
	if os.Getenv("AXO_REQUIRE") == "1" {
		t.Fatalf("REQUIRED: "+format, a...)
	}
	t.Skipf("SKIPPED, NOT PROVED: "+format, a...)
}

// newProcess returns a driver that must leave nothing behind.
func newProcess(t testing.TB, c none.Config) *none.Driver {
	t.Helper()
	d, err := none.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

// eachMode runs f with and without a cgroup.
func eachMode(t *testing.T, f func(t *testing.T, d *none.Driver)) {
	t.Run("cgroup", func(t *testing.T) { f(t, withCgroup(t)) })
	t.Run("plain", func(t *testing.T) { f(t, newProcess(t, none.Config{NoCgroup: true})) })
}

func withCgroup(t testing.TB) *none.Driver {
	t.Helper()
	d := newProcess(t, none.Config{})
	f, err := d.Probe(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []isolation.Limit{isolation.LimitMemory, isolation.LimitPids} {
		if e := f.Enforcement(l); !e.Enforced {
			skip(t, "no cgroup for %s: %s", l, e.Reason)
		}
	}
	return d
}

var made int

func create(t testing.TB, d *none.Driver, r isolation.Resources) isolation.Sandbox {
	t.Helper()
	made++
	sb, err := d.Create(ctxOf(t), fmt.Sprintf("t%d-%d", os.Getpid(), made), isolation.Spec{Requirement: isolation.NativeTrusted, Resources: r})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func start(t testing.TB, sb isolation.Sandbox, p isolation.ProcessSpec, stdio isolation.Stdio) isolation.Process {
	t.Helper()
	pr, err := sb.Exec(ctxOf(t), p, stdio)
	if err != nil {
		t.Fatal(err)
	}
	return pr
}

func run(t testing.TB, sb isolation.Sandbox, p isolation.ProcessSpec, stdio isolation.Stdio) isolation.Exit {
	t.Helper()
	return wait(t, start(t, sb, p, stdio))
}

func sh(script string) isolation.ProcessSpec {
	return isolation.ProcessSpec{Args: []string{"sh", "-c", script}}
}

// token is an argument of sleep(1) by which its processes are found again.
func token() string { return fmt.Sprintf("9%d", 1e8+rand.Int64N(9e8)) }

// sleepers lists the live processes that sleep for tok.
func sleepers(tok string) []int {
	var out []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if argv := strings.Split(string(b), "\x00"); filepath.Base(argv[0]) == "sleep" && slices.Contains(argv, tok) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			out = append(out, pid)
		}
	}
	return out
}

func holders(tok string) int { return len(sleepers(tok)) }

func TestExit(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		var out, errs bytes.Buffer
		e := run(t, sb, sh("cat; echo oops >&2; exit 7"), isolation.Stdio{Stdin: strings.NewReader("hi"), Stdout: &out, Stderr: &errs})
		if e.Reason != isolation.ReasonExited || e.Code != 7 || out.String() != "hi" || errs.String() != "oops\n" {
			t.Errorf("%+v, %q, %q", e, out.String(), errs.String())
		}
		if e.Stdout.Bytes != 2 || e.Stderr.Bytes != 5 || e.Survivors != 0 {
			t.Errorf("accounted as %+v", e)
		}
		for sig, want := range map[string]isolation.Signal{"SEGV": 11, "KILL": 9, "ABRT": 6, "TERM": 15} {
			if e := run(t, sb, sh("kill -"+sig+" $$"), isolation.Stdio{}); e.Reason != isolation.ReasonSignaled || e.Signal != want || e.Code != -1 {
				t.Errorf("%s: %+v", sig, e)
			}
		}
		p := start(t, sb, sh("trap 'exit 9' USR1; echo up; while :; do sleep 0.01; done"), isolation.Stdio{Stdout: writerFunc(func([]byte) {})})
		for wait := true; wait; time.Sleep(5 * time.Millisecond) { // until the trap is set
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
			i := strings.Index(string(b), "SigCgt:")
			caught, _ := strconv.ParseUint(strings.TrimSpace(strings.SplitN(string(b)[i+7:], "\n", 2)[0]), 16, 64)
			wait = caught&(1<<9) == 0
		}
		if err := p.Kill(ctxOf(t), isolation.SIGUSR1); err != nil {
			t.Error(err)
		}
		if e := wait(t, p); e.Reason != isolation.ReasonExited || e.Code != 9 {
			t.Errorf("USR1: %+v", e)
		}
		if err := p.Kill(ctxOf(t), isolation.SIGKILL); err != nil {
			t.Errorf("Kill of an ended process: %v", err)
		}
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func TestWhatAProgramSees(t *testing.T) {
	t.Setenv("AXO_CANARY", "secret")
	secret, err := os.CreateTemp(t.TempDir(), "open")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	leak, err := unix.FcntlInt(secret.Fd(), unix.F_DUPFD, 100) // without close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		var out bytes.Buffer
		env := []string{"B=2", "A=1", "PATH=/nowhere"}
		run(t, sb, isolation.ProcessSpec{Args: helper("env"), Env: env}, isolation.Stdio{Stdout: &out})
		if got := strings.Fields(out.String()); !slices.Equal(got, env) {
			t.Errorf("environment %q, want exactly %q", got, env)
		}
		out.Reset()
		run(t, sb, isolation.ProcessSpec{Args: helper("env")}, isolation.Stdio{Stdout: &out})
		if out.Len() != 0 {
			t.Errorf("empty environment is %q", out.String())
		}
		for _, stdin := range []io.Reader{nil, strings.NewReader("")} {
			out.Reset()
			run(t, sb, sh("ls /proc/$$/fd; grep -h flags: /proc/$$/fdinfo/*; :"), isolation.Stdio{Stdin: stdin, Stdout: &out})
			f := strings.Fields(out.String())
			if len(f) != 9 || !slices.Equal(f[:3], []string{"0", "1", "2"}) {
				t.Fatalf("descriptors %q", f)
			}
			for _, flags := range []string{f[4], f[6], f[8]} {
				if n, err := strconv.ParseInt(flags, 8, 64); err != nil || n&unix.O_NONBLOCK != 0 {
					t.Errorf("descriptor with flags %s, want a blocking one", flags)
				}
			}
		}
		out.Reset()
		script := `pwd; echo $(ps -o pid=,pgid=,sid= -p $$) $$; ulimit -c; grep -E "Sig(Blk|Ign)" /proc/self/status`
		p := run(t, sb, isolation.ProcessSpec{Args: []string{"sh", "-c", script}, Cwd: "/usr"}, isolation.Stdio{Stdout: &out})
		lines := strings.Split(out.String(), "\n")
		if !p.Success() || len(lines) < 5 {
			t.Fatalf("%+v, %q", p, out.String())
		}
		ids := strings.Fields(lines[1])
		if lines[0] != "/usr" || len(slices.Compact(ids)) != 1 || lines[2] != "0" {
			t.Errorf("cwd %q, pid, group, session and shell %q, core limit %q", lines[0], lines[1], lines[2])
		}
		if strings.TrimLeft(strings.TrimPrefix(lines[3], "SigBlk:"), "\t0") != "" || strings.TrimLeft(strings.TrimPrefix(lines[4], "SigIgn:"), "\t0") != "" {
			t.Errorf("signals are blocked or ignored: %q %q", lines[3], lines[4])
		}
	})
}

func TestOpenFiles(t *testing.T) {
	sb := create(t, newProcess(t, none.Config{}), isolation.Resources{})
	var out bytes.Buffer
	p := sh("ulimit -n; ulimit -Hn")
	p.Limits.OpenFiles = 33
	if run(t, sb, p, isolation.Stdio{Stdout: &out}); out.String() != "33\n33\n" {
		t.Errorf("limits are %q, want 33", out.String())
	}
}

func TestUser(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "not root")
	}
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		for user, want := range map[string]string{"nobody": "65534 65534", "4000:5000": "4000 5000", "4001": "4001 4001", "0:7": "0 7"} {
			var out bytes.Buffer
			p := sh("id -u; id -g; grep -c '^Groups:.*[1-9]' /proc/self/status")
			p.User = user
			e := run(t, sb, p, isolation.Stdio{Stdout: &out})
			f := strings.Fields(out.String())
			if len(f) != 3 || f[0]+" "+f[1] != want {
				t.Errorf("%s: %v, %q, want %s", user, e, out.String(), want)
			}
		}
		// What another user left is told, and dies with the sandbox.
		left := sh("setsid sleep 1000 >/dev/null 2>&1 &")
		left.User = "4000:4000"
		if e := run(t, sb, left, isolation.Stdio{}); !e.Success() || e.Survivors != 1 {
			t.Errorf("%+v, want one survivor", e)
		}
		tok := token()
		p := sh("setsid sleep " + tok + " >/dev/null 2>&1 & sleep " + tok)
		p.User = "4000:4000"
		start(t, sb, p, isolation.Stdio{})
		for end := time.Now().Add(10 * time.Second); holders(tok) < 2; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("they do not run")
			}
		}
		remove(t, sb)
		if n := holders(tok); n != 0 {
			t.Errorf("%d processes are left", n)
		}
	})
}

func TestRefusedExec(t *testing.T) {
	d := newProcess(t, none.Config{})
	sb := create(t, d, isolation.Resources{})
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("hello"), 0o755); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(dir, "orphan")
	if err := os.WriteFile(orphan, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		p    isolation.ProcessSpec
		want error
		says string
	}{
		"not in PATH":    {isolation.ProcessSpec{Args: []string{"no-such"}, Env: []string{"PATH=/bin:/opt/x"}}, isolation.ErrNotFound, `"/bin:/opt/x"`},
		"not there":      {isolation.ProcessSpec{Args: []string{"/no/such"}}, isolation.ErrNotFound, "/no/such"},
		"not executable": {isolation.ProcessSpec{Args: []string{plain}}, isolation.ErrPermissionDenied, "plain"},
		"not a program":  {isolation.ProcessSpec{Args: []string{text}}, isolation.ErrInvalidArgument, "text"},
		"no interpreter": {isolation.ProcessSpec{Args: []string{orphan}}, isolation.ErrNotFound, "interpreter"},
		"no cwd":         {isolation.ProcessSpec{Args: []string{"true"}, Cwd: "/no/such"}, isolation.ErrNotFound, "/no/such"},
		"relative cwd":   {isolation.ProcessSpec{Args: []string{"true"}, Cwd: "x"}, isolation.ErrInvalidArgument, "x"},
		"no user":        {isolation.ProcessSpec{Args: []string{"true"}, User: "no-such-user"}, isolation.ErrNotFound, "no-such-user"},
		"bad user":       {isolation.ProcessSpec{Args: []string{"true"}, User: "1:x"}, isolation.ErrInvalidArgument, "1:x"},
		"terminal":       {isolation.ProcessSpec{Args: []string{"true"}, Terminal: true}, isolation.ErrUnsupported, "terminal"},
		"fuel":           {isolation.ProcessSpec{Args: []string{"true"}, Limits: isolation.Limits{Fuel: 1}}, isolation.ErrUnsupported, "fuel"},
		"no args":        {isolation.ProcessSpec{}, isolation.ErrInvalidArgument, "args"},
	} {
		_, err := sb.Exec(ctxOf(t), c.p, isolation.Stdio{Stdin: strings.NewReader("x")})
		if !errors.Is(err, c.want) || isolation.OutcomeOf(err) != isolation.NotStarted || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v, want %v and %q", name, err, c.want, c.says)
		}
	}
	if st, err := sb.State(ctxOf(t)); err != nil || st.Status != isolation.StatusCreated || len(st.Execs) > 0 {
		t.Errorf("State after refusals: %+v, %v", st, err)
	}
	plainDriver := newProcess(t, none.Config{NoCgroup: true})
	for name, r := range map[string]isolation.Resources{"memory": {MemoryBytes: 1 << 30}, "pids": {Pids: 10}, "cpus": {CPUs: 1}, "disk": {DiskBytes: 1}} {
		if _, err := plainDriver.Create(ctxOf(t), "x", isolation.Spec{Requirement: isolation.NativeTrusted, Resources: r}); !errors.Is(err, isolation.ErrUnsupported) {
			t.Errorf("%s limit without a cgroup: %v", name, err)
		}
	}
	f, err := plainDriver.Probe(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []isolation.Limit{isolation.LimitMemory, isolation.LimitPids, isolation.LimitCPUs, isolation.LimitDisk} {
		if e := f.Enforcement(l); e.Enforced || e.Reason == "" {
			t.Errorf("without a cgroup: %+v", e)
		}
	}
}

func TestWallLimit(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		tok := token()
		p := sh("trap '' TERM INT HUP; setsid sleep " + tok + " & echo partial; sleep " + tok)
		p.Limits.Wall = 150 * time.Millisecond
		var out bytes.Buffer
		e := run(t, sb, p, isolation.Stdio{Stdout: &out})
		if e.Reason != isolation.ReasonTimeoutWall || e.Code != -1 || e.Signal != isolation.SIGKILL || out.String() != "partial\n" {
			t.Errorf("%+v, %q", e, out.String())
		}
		if e.Usage.Wall < 150*time.Millisecond || e.Usage.Wall > 2*time.Second {
			t.Errorf("took %v", e.Usage.Wall)
		}
		if n := holders(tok); n != 0 || e.Survivors != 0 {
			t.Errorf("%d processes are left, %d told", n, e.Survivors)
		}
	})
}

func TestCPULimitOfATree(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		spin := strings.Join(helper("spin"), " ")
		p := sh(spin + " & " + spin + " & setsid " + spin + " & wait")
		p.Limits = isolation.Limits{CPU: 400 * time.Millisecond, Wall: 30 * time.Second}
		e := run(t, sb, p, isolation.Stdio{})
		if e.Reason != isolation.ReasonTimeoutCPU {
			t.Fatalf("%+v, want timeout_cpu", e)
		}
		if e.Usage.CPU < 400*time.Millisecond || e.Usage.CPU > 800*time.Millisecond {
			t.Errorf("used %v", e.Usage.CPU)
		}
		// Children that were waited for count as well.
		p = sh("while :; do timeout 0.05 " + spin + "; done")
		p.Limits = isolation.Limits{CPU: 300 * time.Millisecond, Wall: 30 * time.Second}
		if e := run(t, sb, p, isolation.Stdio{}); e.Reason != isolation.ReasonTimeoutCPU {
			t.Errorf("%+v, want timeout_cpu", e)
		}
	})
}

func TestOOM(t *testing.T) {
	d := withCgroup(t)
	sb := create(t, d, isolation.Resources{MemoryBytes: 64 << 20})
	defer remove(t, sb)
	e := run(t, sb, isolation.ProcessSpec{Args: helper("hog", "500")}, isolation.Stdio{})
	if e.Reason != isolation.ReasonOOM || e.Code != -1 || !hit(e, isolation.LimitMemory, 64<<20) {
		t.Errorf("%+v, want oom", e)
	}
	hog := strings.Join(helper("hog", "500"), " ")
	// Each in a group of its own: what was killed in one is charged until the
	// kernel is done with it, and then the shell may be the next to be killed.
	other := func() isolation.Sandbox {
		sb := create(t, d, isolation.Resources{MemoryBytes: 64 << 20})
		t.Cleanup(func() { remove(t, sb) })
		return sb
	}
	if e := run(t, other(), sh(hog+"; exit 3"), isolation.Stdio{}); e.Reason != isolation.ReasonOOM {
		t.Errorf("%+v, want oom of a child", e)
	}
	// Version 2 ends a group as a whole, so the shell with its child.
	want := isolation.ReasonExited
	if cgroup.Find().Version() == "cgroup v2" {
		want = isolation.ReasonOOM
	}
	if e := run(t, other(), sh(hog+"; exit 0"), isolation.Stdio{}); e.Reason != want || want == isolation.ReasonExited && e.Code != 0 || !hit(e, isolation.LimitMemory, 64<<20) {
		t.Errorf("%+v, want %v and a limit hit", e, want)
	}
	if e := run(t, sb, sh("kill -KILL $$"), isolation.Stdio{}); e.Reason != isolation.ReasonSignaled || len(e.LimitsHit) > 0 {
		t.Errorf("%+v: a SIGKILL is not an oom", e)
	}
	fresh := create(t, d, isolation.Resources{MemoryBytes: 256 << 20})
	defer remove(t, fresh)
	if e := run(t, fresh, isolation.ProcessSpec{Args: helper("hog", "100")}, isolation.Stdio{}); !e.Success() || e.Usage.PeakMemoryBytes < 100<<20 || e.Usage.PeakMemoryBytes > 256<<20 {
		t.Errorf("%+v, want a peak of a bit over 100 MiB", e)
	}
}

func hit(e isolation.Exit, l isolation.Limit, value int64) bool {
	return slices.ContainsFunc(e.LimitsHit, func(h isolation.LimitHit) bool { return h.Limit == l && h.Count > 0 && h.Value == value })
}

func TestForkBomb(t *testing.T) {
	d := withCgroup(t)
	sb := create(t, d, isolation.Resources{Pids: 40})
	tok := token()
	var out bytes.Buffer
	e := run(t, sb, isolation.ProcessSpec{Args: helper("bomb", tok)}, isolation.Stdio{Stdout: &out})
	n, _ := strconv.Atoi(strings.TrimSpace(out.String()))
	if !e.Success() || !hit(e, isolation.LimitPids, 40) || n < 10 || n > 40 || e.Survivors != n {
		t.Errorf("%+v after %d children, want success, the limit hit and as many survivors", e, n)
	}
	remove(t, sb)
	sb = create(t, d, isolation.Resources{Pids: 100})
	p := isolation.ProcessSpec{Args: []string{"bash", "-c", "b() { b | b & }; b; sleep " + tok}, Limits: isolation.Limits{Wall: time.Second}}
	if e := run(t, sb, p, isolation.Stdio{}); !hit(e, isolation.LimitPids, 100) {
		t.Errorf("%+v, want the pids limit hit", e)
	}
	remove(t, sb)
	if n := holders(tok); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

func TestSurvivors(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		tok := token()
		var out bytes.Buffer
		// A daemon that forks twice, leaves the session and holds the pipes.
		e := run(t, sb, sh("echo first; (setsid sh -c 'sleep 0.02; echo second; exec sleep "+tok+"' &) ; exit 5"), isolation.Stdio{Stdout: &out})
		if e.Reason != isolation.ReasonExited || e.Code != 5 || e.Survivors != 1 || out.String() != "first\nsecond\n" {
			t.Errorf("%+v, %q", e, out.String())
		}
		if n := holders(tok); n != 1 {
			t.Errorf("%d of the daemon, want 1: it lives as long as the sandbox", n)
		}
		// One that holds nothing is counted as well, and only in its exec.
		e = run(t, sb, sh("setsid sleep "+tok+" </dev/null >/dev/null 2>&1 &"), isolation.Stdio{Stdout: &out})
		if !e.Success() || e.Survivors != 1 {
			t.Errorf("%+v, want 1 survivor", e)
		}
		if e := run(t, sb, sh(":"), isolation.Stdio{Stdout: &out}); e.Survivors != 0 {
			t.Errorf("%+v, want none of another's survivors", e)
		}
		remove(t, sb)
		if n := holders(tok); n != 0 {
			t.Errorf("%d processes are left after Delete", n)
		}
	})
}

func TestSurvivorMayWriteOn(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		var out bytes.Buffer
		file := filepath.Join(t.TempDir(), "alive")
		e := run(t, sb, sh("(sleep 0.4; i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo 0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789; done; echo yes > "+file+") & echo done"), isolation.Stdio{Stdout: &out})
		if e.Survivors == 0 || out.String() != "done\n" {
			t.Errorf("%+v, %q", e, out.String())
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if b, _ := os.ReadFile(file); string(b) == "yes\n" {
				break
			}
			if time.Now().After(end) {
				t.Fatal("a background process was stopped by its closed or full stdout")
			}
		}
		if out.String() != "done\n" {
			t.Errorf("written after Wait: %q", out.String())
		}
	})
}

func TestDeleteEndsTheDisobedient(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		tok := token()
		script := "trap '' TERM HUP INT; i=0; while [ $i -lt 50 ]; do i=$((i+1)); (setsid env -i /bin/sh -c 'exec sleep " + tok + "' >/dev/null 2>&1 &) ; done; sleep " + tok
		p := start(t, sb, sh(script), isolation.Stdio{})
		for end := time.Now().Add(20 * time.Second); holders(tok) < 51 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if n := holders(tok); n != 51 {
			t.Fatalf("%d processes, want 51", n)
		}
		begin := time.Now()
		remove(t, sb)
		t.Logf("Delete of 51 processes: %v", time.Since(begin))
		if n := holders(tok); n != 0 {
			t.Errorf("%d processes are left", n)
		}
		if e := wait(t, p); e.Reason != isolation.ReasonCanceled || e.Code != -1 || e.Survivors != 0 {
			t.Errorf("%+v, want canceled", e)
		}
		if _, err := sb.Exec(ctxOf(t), sh(":"), isolation.Stdio{}); !errors.Is(err, isolation.ErrNotFound) {
			t.Errorf("Exec after Delete: %v", err)
		}
		remove(t, sb)
	})
}

func TestOutputFlood(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		var got int64
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		p := isolation.ProcessSpec{Args: helper("flood", "2048"), Limits: isolation.Limits{OutputBytes: 100 << 20}}
		e := run(t, sb, p, isolation.Stdio{Stdout: writerFunc(func(b []byte) { got += int64(len(b)) })})
		runtime.ReadMemStats(&after)
		if e.Reason != isolation.ReasonOutputLimit || got != 100<<20 || e.Stdout.Bytes-e.Stdout.Dropped != got || e.Stdout.Bytes > 110<<20 {
			t.Errorf("%+v, delivered %d, want output_limit at 100 MiB", e, got)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
			t.Errorf("the host allocated %d bytes for it", n)
		}
		// The whole of it, without a limit, to nobody.
		p = isolation.ProcessSpec{Args: helper("flood", "2048")}
		if e := run(t, sb, p, isolation.Stdio{}); !e.Success() || e.Stdout != (isolation.Output{Bytes: 2 << 30, Dropped: 2 << 30}) {
			t.Errorf("%+v, want 2 GiB counted and dropped", e)
		}
		// A program that is gone before anybody looks.
		q := sh("printf 12345678901")
		q.Limits.OutputBytes = 10
		for range 20 {
			var out bytes.Buffer
			if e := run(t, sb, q, isolation.Stdio{Stdout: &out}); e.Reason != isolation.ReasonOutputLimit || out.String() != "1234567890" {
				t.Fatalf("%+v, %q", e, out.String())
			}
		}
		q.Limits.OutputBytes = 11
		if e := run(t, sb, q, isolation.Stdio{}); !e.Success() {
			t.Errorf("%+v: exactly the limit is within it", e)
		}
	})
}

func TestThroughput(t *testing.T) {
	sb := create(t, newProcess(t, none.Config{}), isolation.Resources{})
	in := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	var out bytes.Buffer
	out.Grow(len(in) + bytes.MinRead)
	begin := time.Now()
	e := run(t, sb, isolation.ProcessSpec{Args: []string{"cat"}}, isolation.Stdio{Stdin: bytes.NewReader(in), Stdout: &out})
	if !e.Success() || !bytes.Equal(out.Bytes(), in) {
		t.Fatalf("%+v, %d bytes came back", e, out.Len())
	}
	t.Logf("64 MiB in and out: %v", time.Since(begin))
}

func TestBlockedCallers(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		// A writer that blocks for good holds neither the limit nor Wait.
		w := make(blocked)
		p := isolation.ProcessSpec{Args: helper("flood", "100"), Limits: isolation.Limits{Wall: 200 * time.Millisecond}}
		e := run(t, sb, p, isolation.Stdio{Stdout: w})
		if e.Reason != isolation.ReasonTimeoutWall || e.Stdout.Bytes != e.Stdout.Dropped || e.Stdout.Bytes == 0 {
			t.Errorf("%+v", e)
		}
		close(w)
		// Back-pressure: nobody reads ahead for it.
		if e.Stdout.Bytes > 1<<20 {
			t.Errorf("%d bytes were taken for a writer that blocks", e.Stdout.Bytes)
		}
		// A reader that blocks holds nothing.
		r, rw := io.Pipe()
		defer rw.Close()
		if e := run(t, sb, sh(":"), isolation.Stdio{Stdin: r}); !e.Success() {
			t.Errorf("%+v", e)
		}
		// A writer that fails gets nothing more.
		bad := &failing{}
		if e := run(t, sb, sh("echo a; sleep 0.05; echo b"), isolation.Stdio{Stdout: bad}); !e.Success() || e.Stdout != (isolation.Output{Bytes: 4, Dropped: 4}) || bad.calls != 1 {
			t.Errorf("%+v after %d writes", e, bad.calls)
		}
	})
}

type failing struct{ calls int }

func (f *failing) Write([]byte) (int, error) { f.calls++; return 0, errors.New("full") }

func TestManyAtOnce(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		const n = 200
		tok := token()
		var wg sync.WaitGroup
		for i := range n {
			id := fmt.Sprintf("many%d-%d", os.Getpid(), i)
			wg.Go(func() {
				sb, err := d.Create(ctxOf(t), id, isolation.Spec{Requirement: isolation.NativeTrusted})
				if err != nil {
					t.Error(err)
					return
				}
				var out bytes.Buffer
				p, err := sb.Exec(ctxOf(t), sh(fmt.Sprintf("setsid sleep %s >/dev/null 2>&1 & head -c 200000 /dev/zero; echo %d >&2; exit %d", tok, i, i%256)), isolation.Stdio{Stdout: &out})
				if err != nil {
					t.Error(err)
					return
				}
				e, err := p.Wait(ctxOf(t))
				if err != nil || e.Reason != isolation.ReasonExited || e.Code != i%256 || out.Len() != 200000 || e.Survivors != 1 {
					t.Errorf("%d: %+v, %v, %d bytes", i, e, err, out.Len())
				}
				if err := sb.Delete(ctxOf(t)); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if n := holders(tok); n != 0 {
			t.Errorf("%d processes are left", n)
		}
	})
}

func TestConcurrentExecsAreToldApart(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		sb := create(t, d, isolation.Resources{})
		defer remove(t, sb)
		tok := token()
		quiet := start(t, sb, sh("sleep 0.6"), isolation.Stdio{})
		spinning := isolation.ProcessSpec{Args: helper("spin"), Limits: isolation.Limits{CPU: 200 * time.Millisecond}}
		calm := sh("setsid sleep " + tok + " >/dev/null 2>&1 & sleep 0.5")
		calm.Limits.CPU = 150 * time.Millisecond
		c := start(t, sb, calm, isolation.Stdio{})
		if e := run(t, sb, spinning, isolation.Stdio{}); e.Reason != isolation.ReasonTimeoutCPU {
			t.Errorf("the spinner: %+v", e)
		}
		if e := wait(t, c); !e.Success() || e.Survivors != 1 {
			t.Errorf("its neighbour: %+v", e)
		}
		if e := wait(t, quiet); !e.Success() || e.Survivors != 0 {
			t.Errorf("the other: %+v", e)
		}
		if n := holders(tok); n != 1 {
			t.Errorf("%d survivors, want 1: a limit of one exec ended another's", n)
		}
	})
}

// TestNoLeftovers counts descriptors and zombies; goroutines are counted at
// the end of all tests.
func TestNoLeftovers(t *testing.T) {
	eachMode(t, func(t *testing.T, d *none.Driver) {
		round := func() {
			sb := create(t, d, isolation.Resources{})
			run(t, sb, sh("setsid sleep 1000 & echo x"), isolation.Stdio{Stdin: strings.NewReader("x"), Stdout: io.Discard})
			_, _ = sb.Exec(ctxOf(t), isolation.ProcessSpec{Args: []string{"no-such"}}, isolation.Stdio{})
			start(t, sb, sh("sleep 1000"), isolation.Stdio{Stdin: strings.NewReader("x")})
			remove(t, sb)
		}
		round()
		before := openFiles(t)
		for range 10 {
			round()
		}
		if after := openFiles(t); after > before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
		var st syscall.Rusage
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, &st); err == nil && pid > 0 {
			t.Errorf("zombie %d was left", pid)
		}
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
