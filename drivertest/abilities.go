package drivertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

var abilityChecks = []check{
	{"told and found", checkAbilities},
	{"attach", checkAttach},
	{"attach to two streams", checkAttachStreams},
	{"attach twice", checkAttachTwice},
	{"attach to a stuck one", checkAttachHolds},
	{"attach to an ended one", checkAttachEnded},
	{"attach errors", checkAttachErrors},
	{"pause", checkPause},
	{"reset", checkReset},
	{"stats", checkStats},
	{"files", checkFileAbility},
	{"directories", checkDirectories},
	{"watch", checkWatch},
	{"prepare", checkPrepare},
	{"dial a port", checkDialPort},
	{"listen on a port", checkListenPort},
}

func abilityNames() []string {
	return []string{
		isolation.AbilityAttach, isolation.AbilityPause, isolation.AbilitySnapshot, isolation.AbilityRestore,
		isolation.AbilityFork, isolation.AbilityRecover, isolation.AbilityReset, isolation.AbilityResize,
		isolation.AbilityFiles, isolation.AbilityStats, isolation.AbilityPrepare,
		isolation.AbilityWatch, isolation.AbilityPorts, isolation.AbilityListen,
	}
}

func has[T any](v any) bool {
	_, ok := isolation.As[T](v)
	return ok
}

// checkAbilities compares what Features tells with what As finds.
func checkAbilities(t testing.TB, s *suite) {
	r := s.start(t, job{program: Exit0})
	r.wait(t)
	attachable := r.sb
	if s.features.Has(isolation.OptionDetached) {
		spec, _ := s.command(t, job{program: Exit0, spec: detached})
		attachable = s.create(t, spec)
	}
	found := map[string]bool{
		isolation.AbilityAttach:   has[isolation.Attacher](attachable),
		isolation.AbilityPause:    has[isolation.Pauser](r.sb),
		isolation.AbilitySnapshot: has[isolation.Snapshotter](r.sb),
		isolation.AbilityRestore:  has[isolation.Restorer](s.d),
		isolation.AbilityFork:     has[isolation.Forker](r.sb),
		isolation.AbilityRecover:  has[isolation.Recoverer](s.d),
		isolation.AbilityReset:    has[isolation.Resetter](r.sb),
		isolation.AbilityFiles:    has[isolation.Files](r.sb) && has[isolation.Directories](r.sb),
		isolation.AbilityWatch:    has[isolation.Watcher](r.sb),
		isolation.AbilityStats:    has[isolation.Stats](r.sb),
		isolation.AbilityPrepare:  has[isolation.Preparer](r.sb),
		isolation.AbilityPorts:    has[isolation.PortDialer](r.sb),
		isolation.AbilityListen:   has[isolation.PortListener](r.sb),
	}
	for name, is := range found {
		if told := slices.Contains(s.features.Abilities, name); told != is {
			t.Errorf("ability %s: told %v, found %v", name, told, is)
		}
	}
	// Resizer is of a process with a terminal; one without need not have it.
	if has[isolation.Resizer](r.p) && !slices.Contains(s.features.Abilities, isolation.AbilityResize) {
		t.Error("ability resize is found and not told")
	}
}

// ability returns an ability that the driver tells, and skips if it has none.
func ability[T any](t testing.TB, s *suite, name string, v any) T {
	t.Helper()
	a, ok := isolation.As[T](v)
	if !ok {
		s.skip(t, "the driver has no ability %s", name)
	}
	return a
}

func checkPause(t testing.TB, s *suite) {
	spec, ps := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	a := ability[isolation.Pauser](t, s, isolation.AbilityPause, sb)
	limit := s.c.Patience / 30 // in which a program must get ready
	r := s.startIn(t, sb, job{program: Ready, args: []string{"0.2"}, process: wall(limit)})
	r.awaitReady(t)
	for range 2 { // both are idempotent
		if err := a.Pause(s.ctx(t)); err != nil {
			t.Fatalf("Pause: %v", err)
		}
	}
	st, err := sb.State(s.ctx(t))
	if err != nil || st.Status != isolation.StatusPaused {
		t.Errorf("state is %+v, %v, want paused", st, err)
	}
	_, err = sb.Exec(s.ctx(t), ps, isolation.Stdio{})
	is(t, "Exec while paused", err, isolation.ErrFailedPrecondition)
	notStarted(t, "Exec while paused", err)
	time.Sleep(limit + limit/2) // the limit does not run meanwhile
	for range 2 {
		if err := a.Resume(s.ctx(t)); err != nil {
			t.Fatalf("Resume: %v", err)
		}
	}
	succeeded(t, r.wait(t), r)
	// What is paused can be killed, and deleted.
	for _, end := range []func(*run){
		func(r *run) { r.kill(t, isolation.SIGKILL); killed(t, r.wait(t), isolation.SIGKILL) },
		func(r *run) { s.delete(t, r.sb); ended(t, r.wait(t), isolation.ReasonCanceled) },
	} {
		r := s.start(t, job{program: Ready, args: []string{"60"}})
		r.awaitReady(t)
		a := ability[isolation.Pauser](t, s, isolation.AbilityPause, r.sb)
		if err := a.Pause(s.ctx(t)); err != nil {
			t.Fatalf("Pause: %v", err)
		}
		end(r)
	}
}

func checkReset(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}, process: func(p *isolation.ProcessSpec) { p.ExecID = "one" }})
	r.awaitReady(t)
	a := ability[isolation.Resetter](t, s, isolation.AbilityReset, r.sb)
	if err := a.Reset(s.ctx(t)); err != nil {
		t.Fatalf("Reset: %v", err)
	}
	ended(t, r.wait(t), isolation.ReasonCanceled)
	s.state(t, r.sb, isolation.StatusCreated)
	again := s.startIn(t, r.sb, job{program: Exit0, process: func(p *isolation.ProcessSpec) { p.ExecID = "one" }})
	succeeded(t, again.wait(t), again)
	s.delete(t, r.sb)
	is(t, "Reset after Delete", a.Reset(s.ctx(t)), isolation.ErrNotFound)
}

func checkStats(t testing.TB, s *suite) {
	r := s.start(t, job{program: Ready, args: []string{"60"}})
	r.awaitReady(t)
	a := ability[isolation.Stats](t, s, isolation.AbilityStats, r.sb)
	u, err := a.Stats(s.ctx(t))
	if err != nil || u.Wall < 0 || u.CPU < 0 || u.PeakMemoryBytes < -1 {
		t.Errorf("Stats: %+v, %v", u, err)
	} else if n := u.Now; n == nil || n.CPUs < 1 || n.Memory < 0 || n.Cache > n.Memory || n.Disk > n.DiskTotal {
		t.Errorf("Stats: now %+v", n)
	}
	s.delete(t, r.sb)
	_, err = a.Stats(s.ctx(t))
	is(t, "Stats after Delete", err, isolation.ErrNotFound)
}

func checkFileAbility(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	a := ability[isolation.Files](t, s, isolation.AbilityFiles, sb)
	const name = "/tmp/drivertest"
	want := bytes.Repeat([]byte("content\x00\n"), 20_000)
	if err := a.WriteFile(s.ctx(t), name, 0o640, bytes.NewReader(want)); err != nil {
		t.Fatalf("WriteFile: %v", err)
	}
	info, err := a.Stat(s.ctx(t), name)
	if err != nil {
		t.Fatalf("Stat: %v", err)
	}
	if info.Size() != int64(len(want)) || info.Mode() != 0o640 || info.IsDir() {
		t.Errorf("Stat: %d bytes, mode %v", info.Size(), info.Mode())
	}
	f, err := a.ReadFile(s.ctx(t), name)
	if err != nil {
		t.Fatalf("ReadFile: %v", err)
	}
	got, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadFile: %d bytes, %v, want %d", len(got), err, len(want))
	}
	err = a.WriteFile(s.ctx(t), name, 0o640, io.MultiReader(strings.NewReader("x"), brokenReader{}))
	if err == nil {
		t.Error("WriteFile from a reader that fails: no error")
	}
	if err := a.Remove(s.ctx(t), name); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	_, err = a.Stat(s.ctx(t), name)
	is(t, "Stat of nothing", err, isolation.ErrNotFound)
	_, err = a.ReadFile(s.ctx(t), name)
	is(t, "ReadFile of nothing", err, isolation.ErrNotFound)
	is(t, "Remove of nothing", a.Remove(s.ctx(t), name), isolation.ErrNotFound)
	for _, bad := range []string{"", "relative", "a\x00b"} {
		is(t, "WriteFile of a bad name", a.WriteFile(s.ctx(t), bad, fs.ModePerm, strings.NewReader("")), isolation.ErrInvalidArgument)
	}
}

func checkDirectories(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	f := ability[isolation.Files](t, s, isolation.AbilityFiles, sb)
	d := ability[isolation.Directories](t, s, isolation.AbilityFiles, sb)
	ctx := s.ctx(t)
	const top = "/tmp/drivertest-dir"
	for range 2 { // one that is there is well
		if err := d.Mkdir(ctx, top+"/a/b", 0o750); err != nil {
			t.Fatalf("Mkdir: %v", err)
		}
	}
	if i, err := f.Stat(ctx, top+"/a/b"); err != nil || !i.IsDir() || i.Mode().Perm() != 0o750 {
		t.Errorf("Stat: %v, %v", i, err)
	}
	for _, name := range []string{"/a/x", "/a/y"} {
		if err := f.WriteFile(ctx, top+name, 0o600, strings.NewReader(name)); err != nil {
			t.Fatalf("WriteFile: %v", err)
		}
	}
	names := func(dir string) string {
		list, err := d.ReadDir(ctx, dir)
		if err != nil {
			t.Fatalf("ReadDir: %v", err)
		}
		var names []string
		for _, i := range list {
			names = append(names, i.Name()+i.Mode().Type().String()[:1])
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	if got := names(top + "/a"); got != "bd x- y-" {
		t.Errorf("ReadDir: %q", got)
	}
	// Over a file that is there, and a directory with all in it.
	if err := errors.Join(d.Rename(ctx, top+"/a/x", top+"/a/y"), d.Rename(ctx, top+"/a", top+"/z")); err != nil {
		t.Fatalf("Rename: %v", err)
	}
	if got := names(top + "/z"); got != "bd y-" {
		t.Errorf("ReadDir after Rename: %q", got)
	}
	is(t, "Remove of a directory that is not empty", f.Remove(ctx, top+"/z"), isolation.ErrFailedPrecondition)
	is(t, "Rename of nothing", d.Rename(ctx, top+"/a", top+"/b"), isolation.ErrNotFound)
	is(t, "WriteFile to a directory", f.WriteFile(ctx, top+"/z", 0o600, strings.NewReader("")), isolation.ErrInvalidArgument)
	is(t, "WriteFile into nothing", f.WriteFile(ctx, top+"/n/n", 0o600, strings.NewReader("")), isolation.ErrNotFound)
	_, err := f.ReadFile(ctx, top)
	is(t, "ReadFile of a directory", err, isolation.ErrInvalidArgument)
	_, err = d.ReadDir(ctx, top+"/a")
	is(t, "ReadDir of nothing", err, isolation.ErrNotFound)
	if err := d.RemoveAll(ctx, top); err != nil {
		t.Errorf("RemoveAll: %v", err)
	}
	_, err = f.Stat(ctx, top)
	is(t, "Stat after RemoveAll", err, isolation.ErrNotFound)
	for _, bad := range []string{"", "relative", "a\x00b"} {
		is(t, "Mkdir of a bad name", d.Mkdir(ctx, bad, 0o755), isolation.ErrInvalidArgument)
		is(t, "Rename to a bad name", d.Rename(ctx, "/tmp", bad), isolation.ErrInvalidArgument)
	}
	s.delete(t, sb)
	is(t, "Mkdir after Delete", d.Mkdir(ctx, top, 0o755), isolation.ErrNotFound)
	is(t, "WriteFile after Delete", f.WriteFile(ctx, top, 0o600, strings.NewReader("")), isolation.ErrNotFound)
}

func checkWatch(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	w := ability[isolation.Watcher](t, s, isolation.AbilityWatch, sb)
	f := ability[isolation.Files](t, s, isolation.AbilityFiles, sb)
	d := ability[isolation.Directories](t, s, isolation.AbilityFiles, sb)
	const top = "/tmp/drivertest-watch"
	if err := d.Mkdir(s.ctx(t), top+"/sub", 0o755); err != nil {
		t.Fatalf("Mkdir: %v", err)
	}
	ctx, cancel := context.WithCancel(s.ctx(t))
	defer cancel()
	ch, err := w.Watch(ctx, top, true)
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	err = errors.Join(f.WriteFile(ctx, top+"/sub/f", 0o644, strings.NewReader("x")), d.Rename(ctx, top+"/sub/f", top+"/g"), f.Remove(ctx, top+"/g"))
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string, is func(isolation.FileEvent) bool) {
		t.Helper()
		for {
			select {
			case e, ok := <-ch:
				if !ok {
					t.Fatalf("the channel is closed; %s was not told", what)
				}
				if is(e) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("not told: %s", what)
			}
		}
	}
	await("a new file below", func(e isolation.FileEvent) bool { return e.Name == top+"/sub/f" && e.Created })
	await("a file that moved here", func(e isolation.FileEvent) bool { return e.Name == top+"/g" && e.Created })
	await("a file that went", func(e isolation.FileEvent) bool { return e.Name == top+"/g" && e.Removed })
	_, err = w.Watch(ctx, top+"/none", false)
	is(t, "Watch of nothing", err, isolation.ErrNotFound)
	second, err := w.Watch(ctx, top, false)
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	cancel()
	for range ch { // closed with ctx
	}
	for range second {
	}
	third, err := w.Watch(s.ctx(t), top, false)
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	s.delete(t, sb)
	for range third { // closed with the sandbox
	}
}

// checkPrepare checks what needs no interpreter.
func checkPrepare(t testing.TB, s *suite) {
	if !slices.Contains(s.features.Abilities, isolation.AbilityPrepare) {
		s.skip(t, "the driver has no ability %s", isolation.AbilityPrepare)
	}
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	p, _ := isolation.As[isolation.Preparer](sb)
	is(t, "Prepare of a language that there is not", p.Prepare(s.ctx(t), "no-such-language"), isolation.ErrUnsupported)
	e := s.startIn(t, sb, job{program: Exit0}).wait(t)
	if !e.Success() {
		t.Errorf("after a Prepare that failed: %v", e)
	}
	s.delete(t, sb)
	is(t, "Prepare after Delete", p.Prepare(s.ctx(t), "no-such-language"), isolation.ErrNotFound)
}
