package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var recoverChecks = []check{
	{"nothing", checkRecoverNothing},
	{"after Close", checkRecoverClosed},
	{"while it writes", checkRecoverWriting},
	{"what has ended", checkRecoverEnded},
	{"deadlines", checkRecoverDeadline},
	{"delete", checkRecoverDelete},
	{"lost", checkRecoverLost},
	{"discard", checkDiscard},
}

// recoverer is the ability, which needs hosts to be shown.
func (s *suite) recoverer(t testing.TB) isolation.Recoverer {
	t.Helper()
	a := ability[isolation.Recoverer](t, s, isolation.AbilityRecover, s.d)
	if s.c.Host == nil {
		t.Fatal("the driver has the ability recover, and the test no Host to show it")
	}
	if !s.features.Has(isolation.OptionDetached) {
		t.Fatal("the driver has the ability recover, and no option detached")
	}
	return a
}

// listed returns what Recoverable tells of a sandbox; nil: nothing.
func (s *suite) listed(t testing.TB, a isolation.Recoverer, id string) *isolation.Recoverable {
	t.Helper()
	list, err := a.Recoverable(s.ctx(t))
	if err != nil {
		t.Fatalf("Recoverable: %v", err)
	}
	for i, x := range list {
		if i > 0 && list[i-1].ID >= x.ID {
			t.Errorf("Recoverable: %s comes before %s", list[i-1].ID, x.ID)
		}
		if x.ID == id {
			return &list[i]
		}
	}
	return nil
}

// recover recovers a sandbox that the check's end deletes.
func (s *suite) recover(t testing.TB, id string) isolation.Sandbox {
	t.Helper()
	a := s.recoverer(t)
	if x := s.listed(t, a, id); x == nil || x.Holder != 0 || x.Err != nil {
		t.Fatalf("Recoverable tells of %s: %+v", id, x)
	}
	sb, err := a.Recover(s.ctx(t), id)
	if err != nil {
		t.Fatalf("Recover %s: %v", id, err)
	}
	t.Cleanup(func() { s.delete(t, sb) })
	if sb.ID() != id {
		t.Errorf("ID() is %q, want %q", sb.ID(), id)
	}
	if x := s.listed(t, a, id); x != nil {
		t.Errorf("Recoverable tells of one that the driver has: %+v", x)
	}
	return sb
}

// none fails unless a sandbox is gone.
func (s *suite) none(t testing.TB, id string) {
	t.Helper()
	a := s.recoverer(t)
	_, err := a.Recover(s.ctx(t), id)
	is(t, "Recover of one that is gone", err, isolation.ErrNotFound)
	if x := s.listed(t, a, id); x != nil {
		t.Errorf("Recoverable tells of one that is gone: %+v", x)
	}
}

func checkRecoverNothing(t testing.TB, s *suite) {
	a := s.recoverer(t)
	_, err := a.Recover(s.ctx(t), s.id())
	is(t, "Recover of nothing", err, isolation.ErrNotFound)
	_, err = a.Recover(s.ctx(t), "../"+s.id())
	is(t, "Recover of a bad id", err, isolation.ErrInvalidArgument)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err = a.Recover(ctx, s.id()); err == nil {
		t.Error("Recover with a canceled ctx: no error")
	}
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	_, err = a.Recover(s.ctx(t), sb.ID())
	is(t, "Recover of the driver's own", err, isolation.ErrAlreadyExists)
	if x := s.listed(t, a, sb.ID()); x != nil {
		t.Errorf("Recoverable tells of one that is not detached: %+v", x)
	}
}

// checkRecoverClosed closes a driver and goes on with another, in one process.
func checkRecoverClosed(t testing.TB, s *suite) {
	s.recoverer(t)
	old := *s
	old.d = s.c.New(t)
	spec, ps := s.command(t, job{program: Echo, spec: detached})
	id := s.id()
	sb, err := old.d.Create(s.ctx(t), id, spec)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	in, feed := io.Pipe()
	ps.ExecID = "cat"
	first := newCapture()
	p, err := sb.Exec(s.ctx(t), ps, isolation.Stdio{Stdin: in, Stdout: first})
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	_, _ = io.WriteString(feed, "one\n")
	for first.String() != "one\n" {
		select {
		case <-first.writes:
		case <-s.ctx(t).Done():
			t.Fatalf("echo wrote %q", first)
		}
	}
	a := s.recoverer(t)
	if x := s.listed(t, a, id); x == nil || x.Holder == 0 {
		t.Errorf("Recoverable tells of one that another driver has: %+v", x)
	}
	_, err = a.Recover(s.ctx(t), id)
	is(t, "Recover of one that another driver has", err, isolation.ErrFailedPrecondition)
	_, err = s.d.Create(s.ctx(t), id, spec)
	is(t, "Create of one that another driver has", err, isolation.ErrAlreadyExists)
	s.within(t, "Close", func() {
		if err := old.d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	if e, err := p.Wait(s.ctx(t)); err == nil || isolation.OutcomeOf(err) != isolation.OutcomeUnknown {
		t.Errorf("Wait for a process that goes on elsewhere: %v, %v", e, err)
	}
	_, err = sb.State(s.ctx(t))
	is(t, "State after Close", err, isolation.ErrNotFound)
	if err := sb.Delete(s.ctx(t)); err != nil {
		t.Errorf("Delete after Close: %v", err)
	}
	// What comes too late is nobody's.
	go func() { _, _ = io.WriteString(feed, "late\n"); feed.Close() }()

	_, err = s.d.Create(s.ctx(t), id, spec)
	is(t, "Create of one that nobody has", err, isolation.ErrAlreadyExists)
	sb = s.recover(t, id)
	st, err := sb.State(s.ctx(t))
	if err != nil || st.Status != isolation.StatusRunning || len(st.Execs) != 1 || st.Execs[0] != "cat" {
		t.Errorf("State: %+v, %v", st, err)
	}
	_, err = s.recoverer(t).Recover(s.ctx(t), id)
	is(t, "Recover again", err, isolation.ErrAlreadyExists)
	_, err = sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	is(t, "Exec with an id in use", err, isolation.ErrAlreadyExists)
	at, ok := isolation.As[isolation.Attacher](sb)
	if !ok {
		t.Fatal("a recovered sandbox is no Attacher")
	}
	_, err = at.Attach(s.ctx(t), "cat", isolation.Offsets{Stdin: 5}, isolation.Stdio{Stdin: strings.NewReader("")})
	is(t, "input from beyond what was given", err, isolation.ErrInvalidArgument)
	second := newCapture()
	p, err = at.Attach(s.ctx(t), "cat", isolation.Offsets{Stdout: 4}, isolation.Stdio{Stdin: strings.NewReader("one\ntwo\n"), Stdout: second})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	e, err := p.Wait(s.ctx(t))
	if err != nil || !e.Success() || second.String() != "two\n" || e.Stdout != (isolation.Output{Bytes: 8}) {
		t.Errorf("%v, %v, %q, %+v", e, err, second, e.Stdout)
	}
	r := s.startIn(t, sb, job{program: Exit7})
	if e := r.wait(t); e.Code != 7 {
		t.Errorf("in a recovered sandbox: %v", e)
	}
	s.delete(t, sb)
	s.none(t, id)
}

// hosted is a story that a host tells.
type hosted struct {
	Story
	stdout, stderr io.Reader
	kill           func()
}

func (s *suite) host(t testing.TB, st Story) *hosted {
	t.Helper()
	s.recoverer(t)
	s.command(t, job{program: st.Program})
	st.ID, st.ExecID = s.id(), "told"
	h := &hosted{Story: st}
	var kill func()
	h.stdout, h.stderr, kill = s.c.Host(t, st)
	var once sync.Once
	h.kill = func() { once.Do(kill) }
	t.Cleanup(h.kill)
	return h
}

// delivered reads what the host got of both outputs: at least so much of
// stdout, after which it is killed.
func (h *hosted) delivered(t testing.TB, atLeast int64) (stdout, stderr []byte) {
	t.Helper()
	var out, errs bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&errs, h.stderr) })
	if n, err := io.CopyN(&out, h.stdout, atLeast); err != nil {
		h.kill()
		wg.Wait()
		t.Fatalf("the host wrote %d bytes: %v; %.500s", n, err, errs.Bytes())
	}
	h.kill()
	_, _ = io.Copy(&out, h.stdout)
	wg.Wait()
	return out.Bytes(), errs.Bytes()
}

// checkRecoverWriting kills the host while a process writes more than is held,
// and looks that of both streams not a byte comes twice or never.
func checkRecoverWriting(t testing.TB, s *suite) {
	const n = 60_000
	want := numbered(n)
	for _, after := range []int64{8, 100_000, 300_000} {
		h := s.host(t, Story{Program: Lines, Args: []string{strconv.Itoa(n), "3"}})
		out, errs := h.delivered(t, after)
		sb := s.recover(t, h.ID)
		s.state(t, sb, isolation.StatusRunning, h.ExecID)
		r := s.attach(t, sb, h.ExecID, isolation.Offsets{Stdout: int64(len(out)), Stderr: int64(len(errs))})
		e := r.exit(t)
		all := isolation.Output{Bytes: int64(len(want))}
		if e.Reason != isolation.ReasonExited || e.Code != 3 || e.Stdout != all || e.Stderr != all {
			t.Errorf("%+v", details(e))
		}
		same(t, fmt.Sprintf("stdout, %d bytes before and %d after", len(out), len(r.out.bytes())), append(out, r.out.bytes()...), want)
		same(t, fmt.Sprintf("stderr, %d bytes before and %d after", len(errs), len(r.err.bytes())), append(errs, r.err.bytes()...), want)
		s.delete(t, sb)
		s.none(t, h.ID)
	}
}

// checkRecoverEnded has a process end that nobody watches.
func checkRecoverEnded(t testing.TB, s *suite) {
	const n = 1000 // 8000 bytes, which are held
	want := numbered(n)
	h := s.host(t, Story{Program: Lines, Args: []string{strconv.Itoa(n), "9"}})
	out, _ := h.delivered(t, 8)
	sb := s.recover(t, h.ID)
	for _, from := range []isolation.Offsets{{}, {Stdout: int64(len(out)), Stderr: 4000}} { // whoever asks
		r := s.attach(t, sb, h.ExecID, from)
		e := r.exit(t)
		all := isolation.Output{Bytes: int64(len(want))}
		if e.Reason != isolation.ReasonExited || e.Code != 9 || e.Stdout != all || e.Stderr != all {
			t.Errorf("%+v", details(e))
		}
		same(t, "stdout", r.out.bytes(), want[from.Stdout:])
		same(t, "stderr", r.err.bytes(), want[from.Stderr:])
	}
	s.state(t, sb, isolation.StatusCreated)
}

// checkRecoverDeadline has a limit on wall time go on in another host.
func checkRecoverDeadline(t testing.TB, s *suite) {
	const limit = 1500 * time.Millisecond
	h := s.host(t, Story{Program: Ready, Args: []string{"600"}, Limits: isolation.Limits{Wall: limit}})
	h.delivered(t, int64(len("ready\n")))
	r := s.attach(t, s.recover(t, h.ID), h.ExecID, isolation.Offsets{})
	e := r.exit(t)
	ended(t, e, isolation.ReasonTimeoutWall)
	hit(t, e, isolation.LimitWall, int64(limit))
	if e.Usage.Wall < limit {
		t.Errorf("it ran %v, its limit is %v", e.Usage.Wall, limit)
	}
	if r.out.String() != "ready\n" {
		t.Errorf("output %q", r.out)
	}
}

func checkRecoverDelete(t testing.TB, s *suite) {
	h := s.host(t, Story{Program: Ready, Args: []string{"600"}})
	a := s.recoverer(t)
	if _, err := io.CopyN(io.Discard, h.stdout, 1); err != nil {
		t.Fatal(err)
	}
	if x := s.listed(t, a, h.ID); x == nil || x.Holder == 0 {
		t.Errorf("Recoverable tells of one that a host has: %+v", x)
	}
	_, err := a.Recover(s.ctx(t), h.ID)
	is(t, "Recover of one that a host has", err, isolation.ErrFailedPrecondition)
	h.kill()
	sb := s.recover(t, h.ID)
	r := s.attach(t, sb, h.ExecID, isolation.Offsets{Stdout: 6})
	s.delete(t, sb)
	ended(t, r.exit(t), isolation.ReasonCanceled)
	s.none(t, h.ID)
	// The id is free.
	spec, _ := s.command(t, job{program: Exit0})
	if sb, err = s.d.Create(s.ctx(t), h.ID, spec); err != nil {
		t.Fatalf("Create: %v", err)
	}
	s.delete(t, sb)
}

// checkRecoverLost kills what carries a sandbox: one that was recovered, and one
// that nobody has.
func checkRecoverLost(t testing.TB, s *suite) {
	if s.c.Lose == nil {
		s.skip(t, "nothing carries the driver's sandboxes")
	}
	story := Story{Program: Ready, Args: []string{"600"}}
	h := s.host(t, story)
	h.delivered(t, 1)
	sb := s.recover(t, h.ID)
	r := s.attach(t, sb, h.ExecID, isolation.Offsets{})
	s.c.Lose(t, s.d, sb, r.p)
	ended(t, r.exit(t), isolation.ReasonSandboxLost)
	s.state(t, sb, isolation.StatusStopped)
	s.delete(t, sb)
	s.none(t, h.ID)

	h = s.host(t, story)
	h.delivered(t, 1)
	own := *s
	own.d = s.c.New(t)
	sb, err := own.recoverer(t).Recover(s.ctx(t), h.ID)
	if err != nil {
		t.Fatalf("Recover: %v", err)
	}
	r = own.attach(t, sb, h.ExecID, isolation.Offsets{})
	s.c.Lose(t, own.d, sb, r.p)
	ended(t, r.exit(t), isolation.ReasonSandboxLost)
	if err := own.d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	s.none(t, h.ID)
}

func checkDiscard(t testing.TB, s *suite) {
	a := s.recoverer(t)
	x, ok := isolation.As[isolation.Discarder](s.d)
	if !ok {
		s.skip(t, "the driver is no Discarder")
	}
	is(t, "Discard of nothing", x.Discard(s.ctx(t), s.id()), isolation.ErrNotFound)
	h := s.host(t, Story{Program: Ready, Args: []string{"600"}})
	if _, err := io.CopyN(io.Discard, h.stdout, 1); err != nil {
		t.Fatal(err)
	}
	is(t, "Discard of one that a host has", x.Discard(s.ctx(t), h.ID), isolation.ErrFailedPrecondition)
	h.kill()
	if x := s.listed(t, a, h.ID); x == nil || x.Holder != 0 || x.Err != nil {
		t.Errorf("Recoverable tells of %s: %+v", h.ID, x)
	}
	if err := x.Discard(s.ctx(t), h.ID); err != nil {
		t.Errorf("Discard: %v", err)
	}
	s.none(t, h.ID)
}
