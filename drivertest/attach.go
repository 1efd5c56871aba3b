package drivertest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
)

func detached(spec *isolation.Spec) { spec.Detached = true }

// attachable starts j where processes can be attached to.
func (s *suite) attachable(t testing.TB, j job) (*run, isolation.Attacher) {
	t.Helper()
	if s.features.Has(isolation.OptionDetached) {
		j.spec = detached
	}
	r := s.start(t, j)
	return r, ability[isolation.Attacher](t, s, isolation.AbilityAttach, r.sb)
}

// attach attaches to a process, and captures its output.
func (s *suite) attach(t testing.TB, sb isolation.Sandbox, execID string, from isolation.Offsets) *run {
	t.Helper()
	a, ok := isolation.As[isolation.Attacher](sb)
	if !ok {
		t.Fatal("the sandbox is no Attacher")
	}
	r := &run{s: s, sb: sb, out: newCapture(), err: newCapture()}
	var err error
	if r.p, err = a.Attach(s.ctx(t), execID, from, isolation.Stdio{Stdout: r.out, Stderr: r.err}); err != nil {
		t.Fatalf("Attach to %s from %+v: %v", execID, from, err)
	}
	if r.p.ID() != execID {
		t.Errorf("ID() is %q, want %q", r.p.ID(), execID)
	}
	return r
}

// exit waits for the end of a process that was attached to. How long it has run
// nobody here knows.
func (r *run) exit(t testing.TB) isolation.Exit {
	t.Helper()
	e, err := r.p.Wait(r.s.ctx(t))
	if err != nil {
		t.Fatalf("Wait %s: %v", r.p.ID(), err)
	}
	sane(t, e, e.Usage.Wall)
	return e
}

func checkAttach(t testing.TB, s *suite) {
	in := newGate(strings.NewReader("0123456789"))
	defer in.open()
	r, a := s.attachable(t, job{program: Echo, stdio: isolation.Stdio{Stdin: in}})
	live := s.attach(t, r.sb, r.p.ID(), isolation.Offsets{})
	_, err := a.Attach(s.ctx(t), r.p.ID(), isolation.Offsets{}, isolation.Stdio{Stdin: strings.NewReader("more")})
	is(t, "Attach with input to one that has some", err, isolation.ErrFailedPrecondition)
	in.open()
	e := live.exit(t)
	if !e.Success() || live.out.String() != "0123456789" || e.Stdout != (isolation.Output{Bytes: 10}) {
		t.Errorf("%v, output %q, %+v", e, live.out, e.Stdout)
	}
	succeeded(t, r.wait(t), r)
	if r.out.String() != "0123456789" {
		t.Errorf("the first caller got %q", r.out)
	}
}

// numbered is what Lines writes.
func numbered(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "%07d\n", i)
	}
	return b.Bytes()
}

// same fails unless two outputs are, and says where they are not.
func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s: %d bytes, want %d; from byte %d on they are %.24q, want %.24q", what, len(got), len(want), at, got[at:], want[at:])
}

func checkAttachStreams(t testing.TB, s *suite) {
	const n = 4000 // 32,000 bytes, which are held
	want := numbered(n)
	r, a := s.attachable(t, job{program: Lines, args: []string{strconv.Itoa(n), "3"}})
	first := r.wait(t)
	for _, from := range []isolation.Offsets{{}, {Stdout: 1}, {Stderr: 8}, {Stdout: 31_999, Stderr: 17}, {Stdout: 32_000, Stderr: 32_000}} {
		at := s.attach(t, r.sb, r.p.ID(), from)
		e := at.exit(t)
		all := isolation.Output{Bytes: int64(len(want))}
		if e.Reason != first.Reason || e.Code != 3 || e.Stdout != all || e.Stderr != all {
			t.Errorf("from %+v: %+v, first %+v", from, details(e), details(first))
		}
		same(t, fmt.Sprintf("stdout from %+v", from), at.out.bytes(), want[from.Stdout:])
		same(t, fmt.Sprintf("stderr from %+v", from), at.err.bytes(), want[from.Stderr:])
	}
	// Who takes nothing is told that nothing was given to him.
	p, err := a.Attach(s.ctx(t), r.p.ID(), isolation.Offsets{Stdout: 30_000}, isolation.Stdio{})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	if e, err := p.Wait(s.ctx(t)); err != nil || e.Stdout != (isolation.Output{Bytes: 32_000, Dropped: 2000}) || e.Stderr.Dropped != 32_000 {
		t.Errorf("without writers: %v, %+v, %+v", err, e.Stdout, e.Stderr)
	}
}

// checkAttachTwice has two attach to a process that floods, one of whom fails.
func checkAttachTwice(t testing.TB, s *suite) {
	const n = 1 << 20
	in := newGate(strings.NewReader(strings.Repeat("abcdefgh", n/8)))
	defer in.open()
	r, a := s.attachable(t, job{program: Echo, stdio: isolation.Stdio{Stdin: in, Stdout: io.Discard}})
	one, two := s.attach(t, r.sb, r.p.ID(), isolation.Offsets{}), s.attach(t, r.sb, r.p.ID(), isolation.Offsets{})
	bad, err := a.Attach(s.ctx(t), r.p.ID(), isolation.Offsets{}, isolation.Stdio{
		Stdout: writerFunc(func(b []byte) (int, error) { return 1, errors.New("no more") }),
	})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	in.open()
	for _, at := range []*run{one, two} {
		if e := at.exit(t); e.Stdout != (isolation.Output{Bytes: n}) {
			t.Errorf("%v, %+v", e, e.Stdout)
		}
	}
	same(t, "two that attached", one.out.bytes(), two.out.bytes())
	if got := one.out.bytes(); len(got) != n || !bytes.HasPrefix(got, []byte("abcdefgh")) {
		t.Errorf("%d bytes, %.16q", len(got), got)
	}
	if e, err := bad.Wait(s.ctx(t)); err != nil || e.Stdout != (isolation.Output{Bytes: n, Dropped: n - 1}) {
		t.Errorf("one that takes one byte: %v, %v, %+v", e, err, e.Stdout)
	}
	succeeded(t, r.wait(t), r)
}

// checkAttachHolds has one that does not take what he attached to: the process
// is held back, and nothing is dropped.
func checkAttachHolds(t testing.TB, s *suite) {
	const n = 4 << 20
	r, a := s.attachable(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	_, ps := s.command(t, job{program: Flood, args: []string{strconv.Itoa(n)}})
	ps.ExecID = "flood"
	gate := make(chan struct{})
	var got int64
	first, err := r.sb.Exec(s.ctx(t), ps, isolation.Stdio{Stdout: writerFunc(func(b []byte) (int, error) {
		<-gate
		got += int64(len(b))
		return len(b), nil
	})})
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	p, err := a.Attach(s.ctx(t), "flood", isolation.Offsets{}, isolation.Stdio{Stdout: io.Discard})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	s.state(t, r.sb, isolation.StatusRunning, r.p.ID(), "flood")
	close(gate)
	e, err := p.Wait(s.ctx(t))
	if err != nil || !e.Success() || e.Stdout != (isolation.Output{Bytes: n}) {
		t.Errorf("%v, %v, %+v", e, err, e.Stdout)
	}
	if again, err := p.Wait(s.ctx(t)); err != nil || again.Stdout != e.Stdout {
		t.Errorf("Wait again: %v, %v", again, err)
	}
	// Each has his output by the end of his own Wait.
	if e, err := first.Wait(s.ctx(t)); err != nil || e.Stdout != (isolation.Output{Bytes: n}) {
		t.Errorf("the first caller's Wait: %v, %v, %+v", e, err, e.Stdout)
	}
	r.kill(t, isolation.SIGKILL)
	killed(t, r.wait(t), isolation.SIGKILL)
	if got != n {
		t.Errorf("the first caller got %d bytes of %d", got, n)
	}
}

func checkAttachEnded(t testing.TB, s *suite) {
	r, a := s.attachable(t, job{program: Echo, stdio: isolation.Stdio{Stdin: strings.NewReader("0123456789")}})
	first := r.wait(t)
	for from := range int64(11) {
		at := s.attach(t, r.sb, r.p.ID(), isolation.Offsets{Stdout: from})
		e := at.exit(t)
		if e.Reason != first.Reason || e.Code != first.Code || e.Stdout.Bytes != 10 {
			t.Errorf("from %d: %+v, want %+v", from, details(e), details(first))
		}
		if want := "0123456789"[from:]; at.out.String() != want {
			t.Errorf("from %d: output %q, want %q", from, at.out, want)
		}
		if err := at.p.Kill(s.ctx(t), isolation.SIGKILL); err != nil {
			t.Errorf("Kill of one that has ended: %v", err)
		}
	}
	_, err := a.Attach(s.ctx(t), r.p.ID(), isolation.Offsets{}, isolation.Stdio{Stdin: strings.NewReader("")})
	is(t, "Attach with input to one that has ended", err, isolation.ErrFailedPrecondition)
	_, ps := s.command(t, job{program: Exit0})
	ps.ExecID = r.p.ID()
	_, err = r.sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	is(t, "Exec with the id of one that has ended", err, isolation.ErrAlreadyExists)
	// Others that end do not push it out.
	for range 15 {
		e := s.startIn(t, r.sb, job{program: Exit0}).wait(t)
		if !e.Success() {
			t.Errorf("%v", e)
		}
	}
	if at := s.attach(t, r.sb, r.p.ID(), isolation.Offsets{}); !at.exit(t).Success() || at.out.String() != "0123456789" {
		t.Errorf("after 15 others: %q", at.out)
	}
}

func checkAttachErrors(t testing.TB, s *suite) {
	// More than anybody holds, so that the beginning is dropped.
	const n = 8 << 20
	r, a := s.attachable(t, job{program: Flood, args: []string{strconv.Itoa(n)}, stdio: isolation.Stdio{Stdout: io.Discard}})
	r.wait(t)
	for _, c := range []struct {
		what  string
		id    string
		from  isolation.Offsets
		class error
	}{
		{"to an unknown id", "nobody", isolation.Offsets{}, isolation.ErrNotFound},
		{"to a bad id", "../x", isolation.Offsets{}, isolation.ErrNotFound},
		{"beyond the end", r.p.ID(), isolation.Offsets{Stdout: n + 1}, isolation.ErrInvalidArgument},
		{"before the beginning", r.p.ID(), isolation.Offsets{Stdout: n, Stderr: -1}, isolation.ErrInvalidArgument},
		{"to what was dropped", r.p.ID(), isolation.Offsets{}, isolation.ErrFailedPrecondition},
	} {
		_, err := a.Attach(s.ctx(t), c.id, c.from, isolation.Stdio{Stdout: io.Discard})
		is(t, "Attach "+c.what, err, c.class)
	}
	other, b := s.attachable(t, job{program: Exit0, process: func(p *isolation.ProcessSpec) { p.ExecID = "other" }})
	other.wait(t)
	_, err := a.Attach(s.ctx(t), "other", isolation.Offsets{}, isolation.Stdio{})
	is(t, "Attach in another sandbox", err, isolation.ErrNotFound)
	if _, err = b.Attach(s.ctx(t), "other", isolation.Offsets{}, isolation.Stdio{}); err != nil {
		t.Errorf("Attach in its own: %v", err)
	}
	s.delete(t, r.sb)
	_, err = a.Attach(s.ctx(t), r.p.ID(), isolation.Offsets{}, isolation.Stdio{})
	is(t, "Attach after Delete", err, isolation.ErrNotFound)
}
