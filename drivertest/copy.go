package drivertest

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var copyChecks = []check{
	{"snapshot", checkSnapshot},
	{"snapshot errors", checkSnapshotErrors},
	{"snapshot of what runs", checkSnapshotLive},
	{"fork", checkFork},
	{"fork errors", checkForkErrors},
	{"fork of what runs", checkForkLive},
}

// marked makes a sandbox, with a file where it has files.
func (s *suite) marked(t testing.TB) isolation.Sandbox {
	t.Helper()
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	s.mark(t, sb, "first")
	return sb
}

const markFile = "/tmp/drivertest-mark"

func (s *suite) mark(t testing.TB, sb isolation.Sandbox, what string) {
	t.Helper()
	if f, ok := isolation.As[isolation.Files](sb); ok {
		if err := f.WriteFile(s.ctx(t), markFile, 0o644, strings.NewReader(what)); err != nil {
			t.Fatal(err)
		}
	}
}

// isMarked looks at the file, and that programs run.
func (s *suite) isMarked(t testing.TB, sb isolation.Sandbox, want string) {
	t.Helper()
	if e := s.startIn(t, sb, job{program: Exit7}).wait(t); e.Code != 7 {
		t.Errorf("in %s: %v", sb.ID(), e)
	}
	f, ok := isolation.As[isolation.Files](sb)
	if !ok {
		return
	}
	r, err := f.ReadFile(s.ctx(t), markFile)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil || string(b) != want {
		t.Errorf("%s has %q, %v, want %q", sb.ID(), b, err, want)
	}
}

// snapshotter returns the abilities, and a name that the check's end frees.
func (s *suite) snapshotter(t testing.TB, sb isolation.Sandbox) (isolation.Snapshotter, isolation.Restorer, string) {
	t.Helper()
	a := ability[isolation.Snapshotter](t, s, isolation.AbilitySnapshot, sb)
	b := ability[isolation.Restorer](t, s, isolation.AbilityRestore, s.d)
	name := "snap-" + s.id()
	t.Cleanup(func() { _ = b.RemoveSnapshot(s.ctx(t), name) })
	return a, b, name
}

func (s *suite) restore(t testing.TB, b isolation.Restorer, name string) isolation.Sandbox {
	t.Helper()
	id := s.id()
	sb, err := b.Restore(s.ctx(t), id, name)
	if err != nil {
		t.Fatalf("Restore: %v", err)
	}
	t.Cleanup(func() { s.delete(t, sb) })
	if sb.ID() != id {
		t.Errorf("ID() is %q, want %q", sb.ID(), id)
	}
	return sb
}

func (s *suite) told(t testing.TB, b isolation.Restorer, name string) *isolation.SnapshotInfo {
	t.Helper()
	list, err := b.Snapshots(s.ctx(t))
	if err != nil {
		t.Fatalf("Snapshots: %v", err)
	}
	for i, x := range list {
		if i > 0 && list[i-1].Name >= x.Name {
			t.Errorf("Snapshots: %s comes before %s", list[i-1].Name, x.Name)
		}
		if x.Name == name {
			return &list[i]
		}
	}
	return nil
}

func checkSnapshot(t testing.TB, s *suite) {
	sb := s.marked(t)
	a, b, name := s.snapshotter(t, sb)
	if x := s.told(t, b, name); x != nil {
		t.Errorf("before it was taken: %+v", x)
	}
	before := time.Now()
	if err := a.Snapshot(s.ctx(t), name); err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	x := s.told(t, b, name)
	if x == nil || x.Err != nil || x.Taken.Before(before.Add(-time.Second)) || x.Bytes < 0 || x.Took < x.Stopped || x.Stopped < 0 || len(x.Execs) > 0 {
		t.Errorf("Snapshots tells %+v", x)
	}
	s.mark(t, sb, "second") // is not in it
	s.isMarked(t, sb, "second")
	one := s.restore(t, b, name)
	s.isMarked(t, one, "first")
	s.mark(t, one, "third")
	s.delete(t, sb)
	two := s.restore(t, b, name)
	s.isMarked(t, two, "first")
	s.isMarked(t, one, "third")
	if err := b.RemoveSnapshot(s.ctx(t), name); err != nil {
		t.Errorf("RemoveSnapshot: %v", err)
	}
	s.isMarked(t, two, "first")
	_, err := b.Restore(s.ctx(t), s.id(), name)
	is(t, "Restore of one that was removed", err, isolation.ErrNotFound)
	// One of one that was restored.
	c := ability[isolation.Snapshotter](t, s, isolation.AbilitySnapshot, one)
	if err := c.Snapshot(s.ctx(t), name); err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	s.isMarked(t, s.restore(t, b, name), "third")
}

func checkSnapshotErrors(t testing.TB, s *suite) {
	sb := s.marked(t)
	a, b, name := s.snapshotter(t, sb)
	if err := a.Snapshot(s.ctx(t), name); err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	is(t, "Snapshot of a name that is taken", a.Snapshot(s.ctx(t), name), isolation.ErrAlreadyExists)
	for _, bad := range []string{"", "..", "a/b", ".x", "a\x00b"} {
		is(t, "Snapshot of a bad name", a.Snapshot(s.ctx(t), bad), isolation.ErrInvalidArgument)
	}
	_, err := b.Restore(s.ctx(t), s.id(), "no-"+name)
	is(t, "Restore of nothing", err, isolation.ErrNotFound)
	is(t, "RemoveSnapshot of nothing", b.RemoveSnapshot(s.ctx(t), "no-"+name), isolation.ErrNotFound)
	_, err = b.Restore(s.ctx(t), sb.ID(), name)
	is(t, "Restore under an id in use", err, isolation.ErrAlreadyExists)
	_, err = b.Restore(s.ctx(t), "../x", name)
	is(t, "Restore under a bad id", err, isolation.ErrInvalidArgument)
	s.delete(t, sb)
	is(t, "Snapshot after Delete", a.Snapshot(s.ctx(t), name+"-2"), isolation.ErrNotFound)
}

// lively has two processes in a sandbox: one that copies its input, which has come
// to "one", and one with a limit on wall time.
func (s *suite) lively(t testing.TB) (cat *run, feed *io.PipeWriter, limited *run) {
	t.Helper()
	in, feed := io.Pipe()
	t.Cleanup(func() { feed.Close() })
	cat = s.start(t, job{program: Echo, stdio: isolation.Stdio{Stdin: in}, process: func(p *isolation.ProcessSpec) { p.ExecID = "cat" }})
	if _, err := io.WriteString(feed, "one\n"); err != nil {
		t.Fatal(err)
	}
	cat.await(t, "one\n")
	limited = s.startIn(t, cat.sb, job{program: Ready, args: []string{"600"}, process: func(p *isolation.ProcessSpec) {
		p.ExecID, p.Limits.Wall = "limited", liveLimit
	}})
	limited.awaitReady(t)
	return cat, feed, limited
}

// liveLimit is more than a copy takes, of which some is left then.
const liveLimit = 10 * time.Second

// goesOn looks that what lively started goes on in a copy.
func (s *suite) goesOn(t testing.TB, sb isolation.Sandbox, word string) {
	t.Helper()
	s.state(t, sb, isolation.StatusRunning, "cat", "limited")
	_, ps := s.command(t, job{program: Exit0})
	ps.ExecID = "cat"
	_, err := sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	is(t, "Exec with the id of a process of the copy", err, isolation.ErrAlreadyExists)
	a := ability[isolation.Attacher](t, s, isolation.AbilityAttach, sb)
	out := newCapture()
	p, err := a.Attach(s.ctx(t), "cat", isolation.Offsets{}, isolation.Stdio{Stdin: strings.NewReader("one\n" + word), Stdout: out})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	want := "one\n" + word
	e, err := p.Wait(s.ctx(t))
	if err != nil || !e.Success() || out.String() != want || e.Stdout != (isolation.Output{Bytes: int64(len(want))}) {
		t.Errorf("%v, %v, %q, %+v", e, err, out, e.Stdout)
	}
}

// endsInTime looks that the limit of a process is the same in a copy.
func (s *suite) endsInTime(t testing.TB, sb isolation.Sandbox) {
	t.Helper()
	e := s.attach(t, sb, "limited", isolation.Offsets{}).exit(t)
	ended(t, e, isolation.ReasonTimeoutWall)
	hit(t, e, isolation.LimitWall, int64(liveLimit))
}

func checkSnapshotLive(t testing.TB, s *suite) {
	cat, feed, limited := s.lively(t)
	a, b, name := s.snapshotter(t, cat.sb)
	err := a.Snapshot(s.ctx(t), name)
	if errors.Is(err, isolation.ErrUnsupported) {
		s.skip(t, "the driver copies no processes")
	} else if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	if x := s.told(t, b, name); x == nil || strings.Join(x.Execs, " ") != "cat limited" {
		t.Errorf("Snapshots tells %+v", x)
	}
	beside := s.restore(t, b, name)
	s.goesOn(t, beside, "three\n")
	_, _ = io.WriteString(feed, "two\n")
	feed.Close()
	succeeded(t, cat.wait(t), cat)
	if cat.out.String() != "one\ntwo\n" {
		t.Errorf("the first one wrote %q", cat.out)
	}
	ended(t, limited.wait(t), isolation.ReasonTimeoutWall)
	s.delete(t, cat.sb)
	after := s.restore(t, b, name)
	s.goesOn(t, after, "four\n")
	s.endsInTime(t, beside)
	s.endsInTime(t, after)
}

func (s *suite) fork(t testing.TB, sb isolation.Sandbox, n int) []isolation.Sandbox {
	t.Helper()
	a := ability[isolation.Forker](t, s, isolation.AbilityFork, sb)
	var ids []string
	for range n {
		ids = append(ids, s.id())
	}
	forks, err := a.Fork(s.ctx(t), ids)
	if errors.Is(err, isolation.ErrUnsupported) {
		s.skip(t, "the driver copies no processes")
	} else if err != nil || len(forks) != n {
		t.Fatalf("Fork: %d sandboxes, %v", len(forks), err)
	}
	for i, f := range forks {
		t.Cleanup(func() { s.delete(t, f) })
		if f.ID() != ids[i] {
			t.Errorf("ID() is %q, want %q", f.ID(), ids[i])
		}
	}
	return forks
}

func checkFork(t testing.TB, s *suite) {
	sb := s.marked(t)
	forks := s.fork(t, sb, 2)
	s.mark(t, forks[0], "second")
	s.isMarked(t, forks[0], "second")
	s.isMarked(t, forks[1], "first")
	s.delete(t, sb)
	again := s.fork(t, forks[0], 1)
	s.isMarked(t, again[0], "second")
}

func checkForkErrors(t testing.TB, s *suite) {
	sb := s.marked(t)
	a := ability[isolation.Forker](t, s, isolation.AbilityFork, sb)
	free := s.id()
	for _, x := range []struct {
		what string
		ids  []string
		want error
	}{
		{"into nothing", nil, isolation.ErrInvalidArgument},
		{"under an id in use", []string{free, sb.ID()}, isolation.ErrAlreadyExists},
		{"under one id twice", []string{free, free}, isolation.ErrAlreadyExists},
		{"under a bad id", []string{free, "../x"}, isolation.ErrInvalidArgument},
	} {
		_, err := a.Fork(s.ctx(t), x.ids)
		is(t, "Fork "+x.what, err, x.want)
	}
	spec, _ := s.command(t, job{program: Exit0})
	other, err := s.d.Create(s.ctx(t), free, spec)
	if err != nil {
		t.Fatalf("a Fork that failed keeps an id: %v", err)
	}
	s.delete(t, other)
	s.isMarked(t, sb, "first")
	s.delete(t, sb)
	_, err = a.Fork(s.ctx(t), []string{s.id()})
	is(t, "Fork after Delete", err, isolation.ErrNotFound)
}

func checkForkLive(t testing.TB, s *suite) {
	cat, feed, limited := s.lively(t)
	forks := s.fork(t, cat.sb, 2)
	for i, f := range forks {
		s.goesOn(t, f, []string{"three\n", "four\n"}[i])
	}
	_, _ = io.WriteString(feed, "two\n")
	feed.Close()
	succeeded(t, cat.wait(t), cat)
	if cat.out.String() != "one\ntwo\n" {
		t.Errorf("the first one wrote %q", cat.out)
	}
	for _, f := range forks {
		s.endsInTime(t, f)
	}
	ended(t, limited.wait(t), isolation.ReasonTimeoutWall)
}
