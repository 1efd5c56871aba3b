package drivertest

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var limitChecks = []check{
	{"wall asleep", checkWallAsleep},
	{"wall computing", checkWallComputing},
	{"wall on stdin", checkWallStdin},
	{"wall on stdout", checkWallStdout},
	{"wall keeps output", checkWallOutput},
	{"wall not reached", checkWallNotReached},
	{"cpu", checkCPU},
	{"cpu asleep", checkCPUAsleep},
	{"fuel", checkFuel},
	{"fuel enough", checkFuelEnough},
	{"output", checkOutput},
	{"output exact", checkOutputExact},
	{"output of both", checkOutputBoth},
	{"memory", checkMemory},
	{"memory enough", checkMemoryEnough},
	{"pids", checkPids},
	{"disk", checkDisk},
	{"io", checkIO},
	{"io operations", checkIOOperations},
	{"open files", checkFiles},
	{"all generous", checkGenerous},
}

// enforced skips a check of a limit that the driver does not have. One that it
// has must be shown by its program.
func (s *suite) enforced(t testing.TB, l isolation.Limit, p Program) {
	t.Helper()
	if !s.features.Enforcement(l).Enforced {
		s.skip(t, "limit %s is not enforced; that it is refused is checked", l)
	}
	if _, _, ok := s.c.Command(p, "1"); !ok {
		t.Fatalf("limit %s is told as enforced, and there is no program %q to show it", l, p)
	}
}

func wall(d time.Duration) func(*isolation.ProcessSpec) {
	return func(p *isolation.ProcessSpec) { p.Limits.Wall = d }
}

const shortWall = 150 * time.Millisecond

func overWall(t testing.TB, e isolation.Exit) { t.Helper(); overWallOf(t, e, shortWall) }

func overWallOf(t testing.TB, e isolation.Exit, limit time.Duration) {
	t.Helper()
	ended(t, e, isolation.ReasonTimeoutWall)
	hit(t, e, isolation.LimitWall, int64(limit))
	if e.Usage.Wall < limit-5*time.Millisecond {
		t.Errorf("wall time is %v of at most %v", e.Usage.Wall, limit)
	}
}

func checkWallAsleep(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitWall, Sleep)
	e, _ := s.run(t, job{program: Sleep, args: []string{"60"}, process: wall(shortWall)})
	overWall(t, e)
}

func checkWallComputing(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitWall, Spin)
	e, r := s.run(t, job{program: Spin, process: wall(shortWall)})
	overWall(t, e)
	again := s.startIn(t, r.sb, job{program: Exit0})
	succeeded(t, again.wait(t), again)
}

func checkWallStdin(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitWall, Echo)
	in := newGate(strings.NewReader(""))
	defer in.open()
	e, _ := s.run(t, job{program: Echo, process: wall(shortWall), stdio: isolation.Stdio{Stdin: in}})
	overWall(t, e)
}

func checkWallStdout(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitWall, Flood)
	out := newWriteGate(newCapture())
	defer out.open()
	e, _ := s.run(t, job{
		program: Flood, args: []string{strconv.Itoa(64 << 20)}, process: wall(shortWall), stdio: isolation.Stdio{Stdout: out},
	})
	overWall(t, e)
	if e.Stdout.Dropped != e.Stdout.Bytes {
		t.Errorf("stdout is %+v, and nothing was taken", e.Stdout)
	}
	if e.Stdout.Bytes >= 64<<20 {
		t.Errorf("the program wrote all of %d bytes to one who takes none", e.Stdout.Bytes)
	}
}

func checkWallOutput(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitWall, Ready)
	// So long that it is ready before, also where everything is emulated.
	limit := max(shortWall, s.c.Patience/60)
	e, r := s.run(t, job{program: Ready, args: []string{"60"}, process: wall(limit)})
	overWallOf(t, e, limit)
	if r.out.String() != "ready\n" || e.Stdout != (isolation.Output{Bytes: 6}) {
		t.Errorf("output is %q (%+v), want what was written before", r.out, e.Stdout)
	}
}

func checkWallNotReached(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitWall, Exit7)
	e, _ := s.run(t, job{program: Exit7, process: wall(s.c.Patience)})
	if e.Reason != isolation.ReasonExited || e.Code != 7 || len(e.LimitsHit) > 0 {
		t.Errorf("%+v, want status 7 and no limit hit", details(e))
	}
}

func cpu(d time.Duration) func(*isolation.ProcessSpec) {
	return func(p *isolation.ProcessSpec) { p.Limits.CPU = d }
}

func checkCPU(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitCPUTime, Spin)
	const limit = 100 * time.Millisecond
	e, _ := s.run(t, job{program: Spin, process: cpu(limit)})
	ended(t, e, isolation.ReasonTimeoutCPU)
	hit(t, e, isolation.LimitCPUTime, int64(limit))
	if e.Usage.CPU < limit/2 {
		t.Errorf("CPU time is %v of at most %v", e.Usage.CPU, limit)
	}
}

func checkCPUAsleep(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitCPUTime, Sleep)
	e, r := s.run(t, job{program: Sleep, args: []string{"1.2"}, process: cpu(time.Second)})
	succeeded(t, e, r)
	if e.Usage.CPU > time.Second {
		t.Errorf("CPU time is %v of a program that sleeps", e.Usage.CPU)
	}
}

func fuel(n uint64) func(*isolation.ProcessSpec) {
	return func(p *isolation.ProcessSpec) { p.Limits.Fuel = n }
}

func checkFuel(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitFuel, Spin)
	const limit = 10_000_000
	e, _ := s.run(t, job{program: Spin, process: fuel(limit)})
	ended(t, e, isolation.ReasonFuelExhausted)
	hit(t, e, isolation.LimitFuel, limit)
	if e.Usage.Fuel == 0 {
		t.Error("no fuel was used")
	}
}

func checkFuelEnough(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitFuel, Exit7)
	e, _ := s.run(t, job{program: Exit7, process: fuel(1 << 40)})
	if e.Reason != isolation.ReasonExited || e.Code != 7 {
		t.Errorf("%v, want status 7", e)
	}
}

func output(n int64) func(*isolation.ProcessSpec) {
	return func(p *isolation.ProcessSpec) { p.Limits.OutputBytes = n }
}

// overOutput checks the end of a program that wrote more than it may: all up to
// the limit is delivered, and what was beyond is counted.
func overOutput(t testing.TB, e isolation.Exit, r *run, limit int64) {
	t.Helper()
	ended(t, e, isolation.ReasonOutputLimit)
	hit(t, e, isolation.LimitOutput, limit)
	out, err := int64(len(r.out.bytes())), int64(len(r.err.bytes()))
	if out+err != limit {
		t.Errorf("%d bytes were delivered, the limit is %d", out+err, limit)
	}
	if e.Stdout.Bytes-e.Stdout.Dropped != out || e.Stderr.Bytes-e.Stderr.Dropped != err {
		t.Errorf("%d and %d bytes were delivered, the Exit says %+v and %+v", out, err, e.Stdout, e.Stderr)
	}
	if e.Stdout.Bytes+e.Stderr.Bytes <= limit {
		t.Errorf("%+v and %+v are not more than %d bytes", e.Stdout, e.Stderr, limit)
	}
}

func checkOutput(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitOutput, Flood)
	for _, limit := range []int64{1, 1000, 1 << 20} {
		for _, p := range []Program{Flood, FloodErr} {
			e, r := s.run(t, job{program: p, args: []string{strconv.Itoa(256 << 20)}, process: output(limit)})
			overOutput(t, e, r, limit)
		}
	}
}

func checkOutputExact(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitOutput, Flood)
	const n = 100_000
	e, r := s.run(t, job{program: Flood, args: []string{strconv.Itoa(n)}, process: output(n)})
	succeeded(t, e, r)
	if e.Stdout != (isolation.Output{Bytes: n}) || len(r.out.bytes()) != n {
		t.Errorf("stdout is %+v, %d bytes came, want %d", e.Stdout, len(r.out.bytes()), n)
	}
}

// checkOutputBoth has a limit that either stream alone keeps.
func checkOutputBoth(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitOutput, Both)
	e, r := s.run(t, job{program: Both, process: output(8)})
	succeeded(t, e, r)
	// The program may have ended by itself before the limit counted.
	e, r = s.run(t, job{program: Both, process: output(7)})
	overOutput(t, e, r, 7)
}

func memory(n int64) func(*isolation.Spec) {
	return func(c *isolation.Spec) { c.Resources.MemoryBytes = n }
}

func checkMemory(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitMemory, Hog)
	const limit = 64 << 20
	e, r := s.run(t, job{program: Hog, args: []string{strconv.Itoa(1 << 30)}, spec: memory(limit)})
	ended(t, e, isolation.ReasonOOM)
	hit(t, e, isolation.LimitMemory, limit)
	if p := e.Usage.PeakMemoryBytes; p > limit+(16<<20) {
		t.Errorf("peak memory is %d, the limit %d", p, limit)
	}
	if s.features.Enforcement(isolation.LimitMemory).Fatal {
		if st, err := r.sb.State(s.ctx(t)); err != nil || st.Status != isolation.StatusStopped {
			t.Errorf("the sandbox is %q, %v, want stopped", st.Status, err)
		}
		return
	}
	// A failed program is not the end of its sandbox.
	again := s.startIn(t, r.sb, job{program: Exit0})
	succeeded(t, again.wait(t), again)
}

func checkMemoryEnough(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitMemory, Hog)
	const n = 16 << 20
	e, r := s.run(t, job{program: Hog, args: []string{strconv.Itoa(n)}, spec: memory(256 << 20)})
	succeeded(t, e, r)
	if p := e.Usage.PeakMemoryBytes; p != -1 && p < n {
		t.Errorf("peak memory is %d of a program that takes %d bytes", p, n)
	}
}

func checkPids(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitPids, Forks)
	pids := func(c *isolation.Spec) { c.Resources.Pids = 32 }
	e, r := s.run(t, job{program: Forks, args: []string{"2"}, spec: pids})
	succeeded(t, e, r)
	e, _ = s.run(t, job{program: Forks, args: []string{"100"}, spec: pids})
	if e.Success() || e.Reason != isolation.ReasonExited {
		t.Errorf("%v, want a program that failed and exited", e)
	}
	if s.features.Enforcement(isolation.LimitPids).Uncounted {
		t.Logf("whether %v tells of the pids limit is not checked: it is not counted", e)
		return
	}
	hit(t, e, isolation.LimitPids, 32)
}

func checkDisk(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitDisk, Fill)
	disk := func(c *isolation.Spec) { c.Resources.DiskBytes = 8 << 20 }
	e, r := s.run(t, job{program: Fill, args: []string{strconv.Itoa(1 << 20)}, spec: disk})
	succeeded(t, e, r)
	e, _ = s.run(t, job{program: Fill, args: []string{strconv.Itoa(32 << 20)}, spec: disk})
	if e.Reason != isolation.ReasonExited || e.Code != 1 {
		t.Errorf("%v, want status 1: there is no room", e)
	}
	if s.features.Enforcement(isolation.LimitDisk).Uncounted {
		t.Logf("whether %v tells of the disk limit is not checked: it is not counted", e)
		return
	}
	hit(t, e, isolation.LimitDisk, 8<<20)
}

// checkIO reads past all caches, at a rate that no disk is as slow as.
func checkIO(t testing.TB, s *suite) {
	s.slowDisk(t, ReadDisk, isolation.IO{ReadBytes: diskRate})
}

func checkIOOperations(t testing.TB, s *suite) {
	s.slowDisk(t, ReadOften, isolation.IO{ReadOps: diskReads * diskRate / diskBytes})
}

// diskBytes are read in diskReads reads, at diskRate bytes a second.
const (
	diskBytes = 2 << 20
	diskReads = 32
	diskRate  = 1 << 20
)

func (s *suite) slowDisk(t testing.TB, p Program, limit isolation.IO) {
	if !s.features.Enforcement(isolation.LimitIO).Enforced {
		s.skip(t, "limit io is not enforced; that it is refused is checked")
	}
	j := job{program: p, args: []string{strconv.Itoa(diskBytes), strconv.Itoa(diskReads)}}
	if _, _, ok := s.c.Command(p, j.args...); !ok {
		s.skip(t, "no file on a block device to read from, past all caches")
	}
	const least = (diskBytes/diskRate - 1) * time.Second // the first of it may come at once
	e, r := s.run(t, j)
	succeeded(t, e, r)
	if e.Usage.Wall >= least {
		s.skip(t, "%d bytes take %v without a limit: the limit cannot be told from that", diskBytes, e.Usage.Wall)
	}
	j.spec = func(c *isolation.Spec) { c.Resources.IO = limit }
	e, r = s.run(t, j)
	succeeded(t, e, r)
	if e.Usage.Wall < least {
		t.Errorf("%d bytes took %v with %+v: want %v at least", diskBytes, e.Usage.Wall, limit, least)
	}
}

func checkFiles(t testing.TB, s *suite) {
	s.enforced(t, isolation.LimitFiles, Files)
	files := func(p *isolation.ProcessSpec) { p.Limits.OpenFiles = 64 }
	e, r := s.run(t, job{program: Files, args: []string{"20"}, process: files})
	succeeded(t, e, r)
	e, _ = s.run(t, job{program: Files, args: []string{"100"}, process: files})
	if e.Reason != isolation.ReasonExited || e.Code != 1 {
		t.Errorf("%v, want status 1: it may not have so many files", e)
	}
}

// checkGenerous asks for every limit that is enforced, at once.
func checkGenerous(t testing.TB, s *suite) {
	j := job{program: Echo, stdio: isolation.Stdio{Stdin: strings.NewReader("all limits")}}
	var specs []func(*isolation.Spec)
	var processes []func(*isolation.ProcessSpec)
	for l, one := range limitJobs() {
		if !s.features.Enforcement(l).Enforced {
			continue
		}
		if one.spec != nil {
			specs = append(specs, one.spec)
		} else {
			processes = append(processes, one.process)
		}
	}
	j.spec = func(c *isolation.Spec) {
		for _, f := range specs {
			f(c)
		}
	}
	j.process = func(p *isolation.ProcessSpec) {
		for _, f := range processes {
			f(p)
		}
	}
	e, r := s.run(t, j)
	succeeded(t, e, r)
	if len(e.LimitsHit) > 0 || r.out.String() != "all limits" {
		t.Errorf("%+v, output %q, want no limit hit", details(e), r.out)
	}
}
