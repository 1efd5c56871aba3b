package drivertest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var stdioChecks = []check{
	{"sizes", checkSizes},
	{"large", checkLarge},
	{"output sizes", checkOutputSizes},
	{"every byte", checkEveryByte},
	{"nil stdin", checkNilStdin},
	{"nil output", checkNilOutput},
	{"streams apart", checkBoth},
	{"one writer for both", checkOneWriter},
	{"stdin never read", checkStdinUnread},
	{"stdin that blocks", checkStdinBlocks},
	{"stdin that fails", checkStdinFails},
	{"stdin comes late", checkStdinLate},
	{"stdout that blocks, Kill", checkBlockedKill},
	{"stdout that blocks, Delete", checkBlockedDelete},
	{"stdout that blocks at the end", checkBlockedEnd},
	{"stdout that is slow", checkSlow},
	{"stdout that fails", checkFailing},
	{"caller's buffer", checkBuffer},
}

// echo sends n bytes through Echo and back.
func (s *suite) echo(t testing.TB, sb isolation.Sandbox, n int64) {
	t.Helper()
	in, out := newNoise(n), newDigest()
	r := s.startIn(t, sb, job{program: Echo, stdio: isolation.Stdio{Stdin: in, Stdout: out}})
	e := r.wait(t)
	succeeded(t, e, r)
	if out.bytes() != n || !out.is(in) {
		t.Errorf("of %d bytes, %d came back, or others", n, out.bytes())
	}
	if e.Stdout != (isolation.Output{Bytes: n}) || e.Stderr != (isolation.Output{}) {
		t.Errorf("stdout is %+v, stderr %+v, want %d bytes and none", e.Stdout, e.Stderr, n)
	}
}

func checkSizes(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Echo})
	sb := s.create(t, spec)
	for _, n := range []int64{0, 1, 4095, 4096, 65535, 65536, 65537, 1<<20 + 1} {
		s.echo(t, sb, n)
	}
}

func checkLarge(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Echo})
	patient := *s
	patient.c.Patience += time.Duration(s.c.Large/(1<<20)) * 500 * time.Millisecond // 2 MiB/s is not a hang
	patient.echo(t, s.create(t, spec), s.c.Large)
}

func checkOutputSizes(t testing.TB, s *suite) {
	for _, n := range []int64{0, 1, 65537, 5 << 20} {
		out := newDigest()
		e, r := s.run(t, job{program: Flood, args: []string{strconv.FormatInt(n, 10)}, stdio: isolation.Stdio{Stdout: out}})
		succeeded(t, e, r)
		if out.bytes() != n || e.Stdout != (isolation.Output{Bytes: n}) || e.Stderr.Bytes != 0 {
			t.Errorf("of %d bytes on stdout %d came: %+v, stderr %+v", n, out.bytes(), e.Stdout, e.Stderr)
		}
	}
	const n = 1<<20 + 3
	out := newDigest()
	e, r := s.run(t, job{program: FloodErr, args: []string{strconv.Itoa(n)}, stdio: isolation.Stdio{Stderr: out}})
	succeeded(t, e, r)
	if out.bytes() != n || e.Stderr != (isolation.Output{Bytes: n}) || e.Stdout.Bytes != 0 {
		t.Errorf("of %d bytes on stderr %d came: %+v, stdout %+v", n, out.bytes(), e.Stderr, e.Stdout)
	}
}

func checkEveryByte(t testing.TB, s *suite) {
	var all []byte
	for i := range 256 {
		all = append(all, byte(i), '\r', '\n', 4, 26, 0) // what a terminal would change or take for the end
	}
	e, r := s.run(t, job{program: Echo, stdio: isolation.Stdio{Stdin: bytes.NewReader(all)}})
	succeeded(t, e, r)
	if got := r.out.bytes(); !bytes.Equal(got, all) {
		t.Errorf("bytes %q arrive as %q", all, got)
	}
}

func checkNilStdin(t testing.TB, s *suite) {
	e, r := s.run(t, job{program: Echo})
	succeeded(t, e, r)
	if e.Stdout.Bytes != 0 {
		t.Errorf("no stdin gave %d bytes: %.80q", e.Stdout.Bytes, r.out.bytes())
	}
}

func checkNilOutput(t testing.TB, s *suite) {
	const n = 1 << 20
	for _, p := range []Program{Flood, FloodErr} {
		e, r := s.run(t, job{program: p, args: []string{strconv.Itoa(n)}, discard: true})
		succeeded(t, e, r)
		want := []isolation.Output{{Bytes: n, Dropped: n}, {}}
		if p == FloodErr {
			slices.Reverse(want)
		}
		if e.Stdout != want[0] || e.Stderr != want[1] {
			t.Errorf("%s to nobody: stdout is %+v, stderr %+v, want %+v", p, e.Stdout, e.Stderr, want)
		}
	}
}

func checkBoth(t testing.TB, s *suite) {
	e, r := s.run(t, job{program: Both})
	succeeded(t, e, r)
	if r.out.String() != "out\n" || r.err.String() != "err\n" {
		t.Errorf("stdout is %q, stderr %q", r.out, r.err)
	}
	if want := (isolation.Output{Bytes: 4}); e.Stdout != want || e.Stderr != want {
		t.Errorf("stdout is %+v, stderr %+v, want 4 bytes each", e.Stdout, e.Stderr)
	}
}

func checkOneWriter(t testing.TB, s *suite) {
	w := newCapture()
	e, r := s.run(t, job{program: Both, stdio: isolation.Stdio{Stdout: w, Stderr: w}})
	succeeded(t, e, r)
	if got := w.String(); got != "out\nerr\n" && got != "err\nout\n" {
		t.Errorf("both streams give %q", got)
	}
}

// aheadBytes is how much of stdin may be read for a program that reads none: a
// few pipes and windows.
const aheadBytes = 4 << 20

func checkStdinUnread(t testing.TB, s *suite) {
	in := newNoise(1 << 30)
	e, r := s.run(t, job{program: Sleep, args: []string{"0.2"}, stdio: isolation.Stdio{Stdin: in}})
	succeeded(t, e, r)
	n := in.read.Load()
	if n > aheadBytes {
		t.Errorf("%d bytes of stdin were read for a program that reads none", n)
	}
	time.Sleep(50 * time.Millisecond) // a driver that goes on reading would show
	// A Read that was under way may have come through.
	if later := in.read.Load(); later-n > 1<<20 {
		t.Errorf("%d bytes of stdin were read after the end", later-n)
	}
}

func checkStdinBlocks(t testing.TB, s *suite) {
	in := newGate(strings.NewReader("too late"))
	defer in.open()
	e, _ := s.run(t, job{program: Exit7, stdio: isolation.Stdio{Stdin: in}})
	if e.Reason != isolation.ReasonExited || e.Code != 7 {
		t.Errorf("%v, want status 7", e)
	}
	// One that waits for it is ended by Delete.
	second := newGate(strings.NewReader(""))
	defer second.open()
	r := s.start(t, job{program: Echo, stdio: isolation.Stdio{Stdin: second}})
	s.delete(t, r.sb)
	ended(t, r.wait(t), isolation.ReasonCanceled)
}

func checkStdinFails(t testing.TB, s *suite) {
	in := io.MultiReader(strings.NewReader("before"), brokenReader{})
	e, r := s.run(t, job{program: Echo, stdio: isolation.Stdio{Stdin: in}})
	succeeded(t, e, r)
	if r.out.String() != "before" {
		t.Errorf("output is %q, want what was read before the error", r.out)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken reader") }

func checkStdinLate(t testing.TB, s *suite) {
	r, w := io.Pipe()
	run := s.start(t, job{program: Echo, stdio: isolation.Stdio{Stdin: r}})
	// Each piece comes back before the next is sent: nothing waits for more.
	for _, piece := range []string{"a", "bc", "\n", strings.Repeat("d", 5000)} {
		before := len(run.out.bytes())
		s.within(t, "a write to stdin", func() { _, _ = io.WriteString(w, piece) })
		timeout := time.After(s.c.Patience)
		for len(run.out.bytes()) < before+len(piece) {
			select {
			case <-run.out.writes:
			case <-timeout:
				_ = w.Close()
				t.Fatalf("%q has not come back", piece)
			}
		}
	}
	_ = w.Close()
	e := run.wait(t)
	succeeded(t, e, run)
}

// blocked starts a program that writes without end to one who takes nothing.
func (s *suite) blocked(t testing.TB) (*run, *gate) {
	t.Helper()
	out := newWriteGate(newCapture())
	t.Cleanup(out.open)
	r := s.start(t, job{program: Flood, args: []string{strconv.Itoa(1 << 30)}, stdio: isolation.Stdio{Stdout: out}})
	s.within(t, "the first output", func() { <-out.entered })
	return r, out
}

func checkBlockedKill(t testing.TB, s *suite) {
	r, out := s.blocked(t)
	r.kill(t, isolation.SIGKILL)
	e := r.wait(t)
	killed(t, e, isolation.SIGKILL)
	if e.Stdout.Dropped != e.Stdout.Bytes || e.Stdout.Bytes == 0 {
		t.Errorf("stdout is %+v, and nothing was taken", e.Stdout)
	}
	before := e
	out.open()
	if again := r.wait(t); again.Stdout != before.Stdout {
		t.Errorf("the Exit changed from %+v to %+v when the writer went on", before, again)
	}
}

func checkBlockedDelete(t testing.TB, s *suite) {
	r, _ := s.blocked(t)
	s.within(t, "Delete", func() { s.delete(t, r.sb) })
	ended(t, r.wait(t), isolation.ReasonCanceled)
}

// checkBlockedEnd has the program end by itself while a writer takes nothing,
// and looks for Writes that begin after Wait returned.
func checkBlockedEnd(t testing.TB, s *suite) {
	w := &countingGate{gate: newWriteGate(newCapture())}
	t.Cleanup(w.open)
	e, r := s.run(t, job{program: Ready, args: []string{"0"}, stdio: isolation.Stdio{Stdout: w}})
	succeeded(t, e, r)
	if e.Stdout != (isolation.Output{Bytes: 6, Dropped: 6}) {
		t.Errorf("stdout is %+v, want 6 bytes, all dropped", e.Stdout)
	}
	w.end()
	w.open()
	time.Sleep(20 * time.Millisecond) // a driver that goes on writing would show
	if n := w.after(); n > 0 {
		t.Errorf("%d Writes began after Wait had returned", n)
	}
}

type countingGate struct {
	*gate
	mu    sync.Mutex
	ended bool
	late  int
}

func (c *countingGate) Write(b []byte) (int, error) {
	c.mu.Lock()
	if c.ended {
		c.late++
	}
	c.mu.Unlock()
	return c.gate.Write(b)
}

func (c *countingGate) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}

func (c *countingGate) after() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.late
}

// checkSlow has a writer that takes its time, but takes: all must arrive, also
// what it gets when the end is longer ago than one Write may be blocked.
func checkSlow(t testing.TB, s *suite) {
	const n = 512 << 10
	w := &slow{}
	e, r := s.run(t, job{program: Flood, args: []string{strconv.Itoa(n)}, stdio: isolation.Stdio{Stdout: w}})
	succeeded(t, e, r)
	if got := w.bytes(); got != n || e.Stdout != (isolation.Output{Bytes: n}) {
		t.Errorf("a slow writer got %d of %d bytes; stdout is %+v", got, n, e.Stdout)
	}
}

// slow takes 70 ms for each Write, however large.
type slow struct {
	mu sync.Mutex
	n  int
}

func (w *slow) Write(b []byte) (int, error) {
	time.Sleep(70 * time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n += len(b)
	return len(b), nil
}

func (w *slow) bytes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// checkFailing has a writer that fails: the program goes on, all is counted,
// and the writer is left alone.
func checkFailing(t testing.TB, s *suite) {
	const n, takes = 1 << 20, 100_000
	w := &failing{takes: takes, err: errors.New("broken writer")}
	e, r := s.run(t, job{program: Flood, args: []string{strconv.Itoa(n)}, stdio: isolation.Stdio{Stdout: w}})
	succeeded(t, e, r)
	if e.Stdout != (isolation.Output{Bytes: n, Dropped: n - takes}) {
		t.Errorf("stdout is %+v, want %d bytes, %d dropped", e.Stdout, n, n-takes)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.after > 0 {
		t.Errorf("%d Writes after one that failed", w.after)
	}
}

// checkBuffer keeps the slices that the driver passed: io.Writer says that they
// must not be changed while Write runs, so a copy made in it stays good.
func checkBuffer(t testing.TB, s *suite) {
	var mu sync.Mutex
	var got []byte
	w := writerFunc(func(b []byte) (int, error) {
		first := bytes.Clone(b)
		time.Sleep(time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if !bytes.Equal(first, b) {
			t.Errorf("the bytes changed while they were written")
		}
		got = append(got, b...)
		return len(b), nil
	})
	in := newNoise(300_000)
	e, r := s.run(t, job{program: Echo, stdio: isolation.Stdio{Stdin: in, Stdout: w}})
	succeeded(t, e, r)
	d := newDigest()
	_, _ = d.Write(got)
	if !d.is(in) {
		t.Error("other bytes came back")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
