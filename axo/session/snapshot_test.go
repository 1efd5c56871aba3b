package session

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/api"
	"github.com/axocoatl/isolation/driver/mem"
	"github.com/axocoatl/isolation/engine"
)

func write(t *testing.T, s *Session, name, content string) {
	t.Helper()
	f, err := s.Files(t.Context())
	if err == nil {
		err = f.WriteFile(t.Context(), name, 0o644, strings.NewReader(content))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *Session, name string) string {
	t.Helper()
	f, err := s.Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.ReadFile(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b strings.Builder
	buf := make([]byte, 100)
	for {
		n, err := r.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}

// TestSnapshot: a snapshot is its tenant's, stays over a restart, and what is made of
// it is a session like any other.
func TestSnapshot(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	s := create(t, l, "a", request())
	write(t, s, "/tmp/f", "then")
	x, err := s.Snapshot(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if i := x.Info(); i.Name != "one" || i.Status != api.SnapshotReady || i.Sandbox != s.ID() || i.Engine != "mem" || !i.Durable {
		t.Errorf("%+v", i)
	}
	write(t, s, "/tmp/f", "now")
	_, err = s.Snapshot(t.Context(), "one")
	is(t, err, isolation.ErrAlreadyExists)
	_, err = s.Snapshot(t.Context(), "../one")
	is(t, err, isolation.ErrInvalidArgument)
	other := create(t, l, "b", request())
	if _, err := other.Snapshot(t.Context(), "one"); err != nil {
		t.Errorf("another tenant's name: %v", err)
	}
	_, err = l.Restore(t.Context(), "b", x.Info().ID, Request{})
	is(t, err, isolation.ErrNotFound)
	l.end(t)

	l = p.open(t)
	if list := l.Snapshots("a"); len(list) != 1 || list[0].Info().Name != "one" {
		t.Fatalf("after a restart: %v", list)
	}
	again, err := l.Restore(t.Context(), "a", "one", Request{ID: "again", Metadata: map[string]string{"k": "v"}, Idle: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if i := again.Info(); i.ID != "again" || i.Metadata["k"] != "v" || i.IdleMS != 60_000 || i.From != x.Info().ID || !i.Durable || i.Status != api.StatusRunning {
		t.Errorf("%+v", i)
	}
	if got := read(t, again, "/tmp/f"); got != "then" {
		t.Errorf("it has %q", got)
	}
	if e := run(t, again, "exit7"); func() int { exit, _ := e.Wait(t.Context()); return exit.Code }() != 7 {
		t.Error("it runs nothing")
	}
	l.end(t)

	l = p.open(t)
	got, err := l.Get("a", "again")
	if err != nil || got.Info().Status != api.StatusRunning || read(t, got, "/tmp/f") != "then" {
		t.Fatalf("what was made of it, after a restart: %v %+v", err, got.Info())
	}
	x, err = l.FindSnapshot("a", "one")
	if err == nil {
		err = x.Delete(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Delete(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
	_, err = l.Restore(t.Context(), "a", "one", Request{})
	is(t, err, isolation.ErrNotFound)
	if read(t, got, "/tmp/f") != "then" {
		t.Error("what was made of it is not as it was")
	}
	deleteAll(t, l)
	if x, err = l.FindSnapshot("b", "one"); err == nil {
		err = x.Delete(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(filepath.Join(p.dir, snapshotsDir)); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

func deleteAll(t *testing.T, l *life) {
	t.Helper()
	for _, who := range []string{"a", "b"} {
		for _, s := range l.List(who, nil) {
			if err := s.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestSnapshotUnacknowledged: of one that nobody was told of nothing is left, and
// one that was to go is gone.
func TestSnapshotUnacknowledged(t *testing.T) {
	for _, phase := range []string{phaseTaking, phaseDeleting} {
		p := newPlace(t)
		l := p.open(t)
		s := create(t, l, "a", request())
		x, err := s.Snapshot(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		l.end(t)
		rec := x.rec
		rec.Phase = phase
		if err := save(l.snapshotFile(rec.ID), rec); err != nil {
			t.Fatal(err)
		}
		l = p.open(t)
		if list := l.Snapshots("a"); len(list) > 0 {
			t.Errorf("%s: %+v", phase, list[0].Info())
		}
		r, ok := isolation.As[isolation.Restorer](l.driver)
		if !ok {
			t.Fatal("mem restores nothing")
		}
		if list, err := r.Snapshots(t.Context()); err != nil || len(list) > 0 {
			t.Errorf("%s: the driver has %v, %v", phase, list, err)
		}
		deleteAll(t, l)
	}
}

func TestFork(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	s := create(t, l, "a", Request{Spec: request().Spec, Metadata: map[string]string{"of": "source"}})
	write(t, s, "/tmp/f", "source")
	copies, err := s.Fork(t.Context(), []Request{{ID: "one", Metadata: map[string]string{"of": "copy"}}, {ID: "two"}})
	if err != nil || len(copies) != 2 {
		t.Fatalf("%v %v", copies, err)
	}
	write(t, copies[0], "/tmp/f", "one")
	if read(t, s, "/tmp/f") != "source" || read(t, copies[1], "/tmp/f") != "source" {
		t.Error("what one writes is another's")
	}
	if i := copies[0].Info(); i.Metadata["of"] != "copy" || i.From != s.ID() || len(copies[1].Info().Metadata) > 0 {
		t.Errorf("%+v", i)
	}
	_, err = s.Fork(t.Context(), []Request{{ID: "three"}, {ID: "two"}})
	is(t, err, isolation.ErrAlreadyExists)
	_, err = s.Fork(t.Context(), nil)
	is(t, err, isolation.ErrInvalidArgument)
	if list := l.List("a", nil); len(list) != 3 {
		t.Errorf("a fork that failed has left some of %d", len(list))
	}
	l.end(t)
	l = p.open(t)
	one, err := l.Get("a", "one")
	if err != nil || read(t, one, "/tmp/f") != "one" {
		t.Errorf("after a restart: %v", err)
	}
	deleteAll(t, l)
	if names := left(t, p); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

// TestCopiesNotThere: a driver that copies nothing, or no processes, says so, and
// nothing is left of the attempt.
func TestCopiesNotThere(t *testing.T) {
	p := newPlace(t)
	l := p.open(t)
	s := create(t, l, "a", request())
	run(t, s, "sleep", "100")
	_, err := s.Snapshot(t.Context(), "x")
	is(t, err, isolation.ErrUnsupported)
	_, err = s.Fork(t.Context(), []Request{{ID: "copy"}})
	is(t, err, isolation.ErrUnsupported)
	if i := s.Info(); i.Status != api.StatusRunning || len(i.Execs) != 1 || len(l.List("a", nil)) != 1 || len(l.Snapshots("a")) != 0 {
		t.Errorf("%+v", i)
	}
	if st, err := s.sb.State(t.Context()); err != nil || st.Status != isolation.StatusRunning {
		t.Errorf("its programs do not go on: %v, %v", st, err)
	}
	deleteAll(t, l)

	d := mem.New(mem.Config{Features: func(f *isolation.Features) {
		f.Tier, f.Abilities = isolation.TierOCI, nil
		f.Options = append(f.Options, isolation.OptionDetached)
	}})
	var reg isolation.Registry
	reg.Add(isolation.TierOCI, d)
	e, err := engine.New(engine.Config{Registry: reg})
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(t.Context(), Config{Engine: e, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(t.Context())
	s, err = m.Create(t.Context(), "a", Request{Spec: request().Spec, Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Snapshot(t.Context(), "x")
	var u *isolation.UnsupportedError
	if !errors.As(err, &u) {
		t.Errorf("%v", err)
	}
	_, err = s.Fork(t.Context(), []Request{{}})
	is(t, err, isolation.ErrUnsupported)
}

func TestSnapshotQuota(t *testing.T) {
	p := newPlace(t)
	l := p.open(t, func(c *Config) { c.Quota = func(string) Quota { return Quota{Sandboxes: 2, Snapshots: 1} } })
	s := create(t, l, "a", request())
	if _, err := s.Snapshot(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Snapshot(t.Context(), "two")
	is(t, err, isolation.ErrResourceExhausted)
	_, err = s.Fork(t.Context(), []Request{{}, {}})
	is(t, err, isolation.ErrResourceExhausted)
	if len(l.List("a", nil)) != 1 {
		t.Error("a part of a fork is there")
	}
	if _, err := l.Restore(t.Context(), "a", "one", Request{}); err != nil {
		t.Error(err)
	}
	_, err = l.Restore(t.Context(), "a", "one", Request{})
	is(t, err, isolation.ErrResourceExhausted)
	deleteAll(t, l)
}
