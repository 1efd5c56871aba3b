package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

func openTest(t *testing.T) (*Log, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit", "audit.db")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

func record(t *testing.T, l *Log, n int) {
	t.Helper()
	for i := range n {
		if err := l.Record(t.Context(), Entry{Kind: "request", Tenant: fmt.Sprintf("t%d", i%2), Subject: fmt.Sprintf("s%d", i), Key: "k", Fields: map[string]string{"op": "run", "n": fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecordAndList(t *testing.T) {
	l, path := openTest(t)
	record(t, l, 6)
	all, err := l.List(t.Context(), Query{})
	if err != nil || len(all) != 6 || all[0].Seq != 1 || all[5].Fields["n"] != "5" || all[5].Hash == "" || time.Since(all[0].Time) > time.Hour {
		t.Fatalf("%+v, %v", all, err)
	}
	for name, c := range map[string]struct {
		q    Query
		want string
	}{
		"tenant":  {Query{Tenant: "t1"}, "2 4 6"},
		"subject": {Query{Subject: "s2"}, "3"},
		"kind":    {Query{Kind: "other"}, ""},
		"after":   {Query{After: 4}, "5 6"},
		"limit":   {Query{Limit: 2}, "1 2"},
		"newest":  {Query{Limit: 2, Newest: true}, "5 6"},
		"since":   {Query{Since: all[5].Time.Add(time.Second)}, ""},
		"until":   {Query{Until: all[0].Time}, ""},
		"hostile": {Query{Tenant: "' OR 1=1 --"}, ""},
	} {
		got, err := l.List(t.Context(), c.q)
		var seqs []string
		for _, e := range got {
			seqs = append(seqs, fmt.Sprint(e.Seq))
		}
		if err != nil || strings.Join(seqs, " ") != c.want {
			t.Errorf("%s: %v, %v, want %s", name, seqs, err, c.want)
		}
	}
	// It goes on where it ended, and only its owner can read it.
	head, err := l.Head()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), Entry{}); !errors.Is(err, isolation.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	record(t, again, 1)
	if r, err := again.Verify(t.Context(), head); err != nil || r.Entries != 7 || r.Head.Seq != 7 {
		t.Errorf("%+v, %v", r, err)
	}
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if info, err := f.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", f.Name(), info.Mode(), err)
		}
	}
	ro, err := OpenToRead(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if all, err := ro.List(t.Context(), Query{}); err != nil || len(all) != 7 {
		t.Errorf("%d, %v", len(all), err)
	}
	if _, err := ro.Prune(-time.Hour); err == nil {
		t.Error("what is only read was changed")
	}
	if _, err := OpenToRead(path + "x"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
}

// Several processes may write, each with many callers, and the chain stays one.
func TestManyWriters(t *testing.T) {
	a, path := openTest(t)
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { record(t, []*Log{a, b}[i%2], 50) })
	}
	wg.Wait()
	if r, err := a.Verify(t.Context()); err != nil || r.Entries != 800 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestHostileEntry(t *testing.T) {
	l, _ := openTest(t)
	fields := map[string]string{"text": strings.Repeat("x", 1<<20), "bytes": "\xff\x00\n"}
	for i := range 100 {
		fields[fmt.Sprintf("f%d", i)] = "v"
	}
	if err := l.Record(t.Context(), Entry{Kind: "k", Subject: strings.Repeat("é", 1000), Fields: fields}); err != nil {
		t.Fatal(err)
	}
	all, err := l.List(t.Context(), Query{})
	if err != nil || len(all) != 1 || len(all[0].Fields) > maxFields+1 || len(all[0].Subject) > 256 {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	for _, v := range all[0].Fields {
		if len(v) > maxText {
			t.Errorf("%d bytes", len(v))
		}
	}
	if _, err := l.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// Whatever is done to the entries, it is found, and where.
func TestTampering(t *testing.T) {
	for name, c := range map[string]struct {
		sql  string
		seq  int64
		what string
	}{
		"nothing":        {"SELECT 1", 0, ""},
		"changed":        {`UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '"n":"3"', '"n":"9"') AS BLOB) WHERE seq = 4`, 4, "its hash"},
		"rehashed":       {"UPDATE entries SET hash = zeroblob(32) WHERE seq = 4", 4, "its hash"},
		"column":         {"UPDATE entries SET tenant = 'other' WHERE seq = 4", 4, "searched by"},
		"time":           {"UPDATE entries SET time = time + 1 WHERE seq = 4", 4, "searched by"},
		"deleted":        {"DELETE FROM entries WHERE seq = 4", 4, "not there"},
		"first deleted":  {"DELETE FROM entries WHERE seq = 1", 1, "not there"},
		"swapped":        {"UPDATE entries SET seq = -1 WHERE seq = 4; UPDATE entries SET seq = 4 WHERE seq = 5; UPDATE entries SET seq = 5 WHERE seq = -1", 4, "its hash"},
		"inserted":       {"UPDATE entries SET seq = seq + 100 WHERE seq >= 4; UPDATE entries SET seq = seq - 99 WHERE seq >= 100; INSERT INTO entries SELECT 4, time, kind, tenant, subject, body, hash FROM entries WHERE seq = 3", 4, "its hash"},
		"end cut off":    {"DELETE FROM entries WHERE seq > 6", 8, "was noted down, and is not there"},
		"beginning":      {"DELETE FROM entries WHERE seq <= 3; UPDATE base SET seq = 3, hash = (SELECT hash FROM (SELECT x'00' AS hash))", 4, "its hash"},
		"silently moved": {"UPDATE base SET seq = 3, hash = (SELECT hash FROM entries WHERE seq = 3); DELETE FROM entries WHERE seq <= 3", 3, "no entry says that they were pruned"},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := openTest(t)
			record(t, l, 8)
			head, err := l.Head()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.db.Exec(c.sql); err != nil {
				t.Fatal(err)
			}
			_, err = l.Verify(t.Context(), head)
			var bad *TamperedError
			switch {
			case c.seq == 0:
				if err != nil {
					t.Error(err)
				}
			case !errors.As(err, &bad) || bad.Seq != c.seq || !strings.Contains(bad.What, c.what):
				t.Errorf("%v, want entry %d: %s", err, c.seq, c.what)
			}
		})
	}
	t.Run("another head", func(t *testing.T) {
		l, _ := openTest(t)
		record(t, l, 3)
		if _, err := l.Verify(t.Context(), Head{2, strings.Repeat("0", 64)}); !IsTampered(err) {
			t.Errorf("%v", err)
		}
	})
}

// hands are a clock that can be set, and how long the host has been up.
type hands struct {
	mu   sync.Mutex
	wall time.Time
	boot string
	up   time.Duration
}

func (h *hands) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall, h.up = h.wall.Add(d), h.up+d
}

func (h *hands) set(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall = h.wall.Add(d)
}

// reboot has the host be off for a time.
func (h *hands) reboot(off time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall, h.boot, h.up = h.wall.Add(off), h.boot+"'", 0
}

func (h *hands) of(l *Log) {
	l.now = func() time.Time {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.wall
	}
	l.boot = func() (string, time.Duration) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.boot, h.up
	}
}

func newHands(l *Log) *hands {
	h := &hands{wall: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), boot: "first"}
	h.of(l)
	return h
}

func TestPrune(t *testing.T) {
	l, _ := openTest(t)
	h := newHands(l)
	for range 10 {
		h.pass(time.Hour)
		record(t, l, 1)
	}
	early, err := l.Head()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := l.Prune(4*time.Hour + time.Minute); err != nil || n != 5 {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := l.Prune(100 * time.Hour); err != nil || n != 0 {
		t.Errorf("nothing to prune: %d, %v", n, err)
	}
	r, err := l.Verify(t.Context(), early)
	if err != nil || r.First != 6 || r.Removed != 5 || r.Entries != 6 {
		t.Errorf("%+v, %v", r, err)
	}
	// All that is there, but for the newest.
	if _, err := l.Prune(-1000 * time.Hour); err != nil {
		t.Fatal(err)
	}
	record(t, l, 1)
	if r, err = l.Verify(t.Context(), early); err != nil || r.Entries != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What is kept for ten days is kept for ten days, whatever the clock is set to meanwhile,
// and not for ever; that it was set is written down, once.
func TestPruneWithAClockThatIsSet(t *testing.T) {
	const day, years = 24 * time.Hour, 10 * 365 * 24 * time.Hour
	for name, c := range map[string]struct {
		jump  func(*hands)
		later func(*hands) // a day after it
		says  []string     // by how much
	}{
		"not":                        {says: nil},
		"forward":                    {jump: func(h *hands) { h.set(years) }, says: []string{"87600h0m0s"}},
		"back":                       {jump: func(h *hands) { h.set(-years) }, says: []string{"-87600h0m0s"}},
		"forward and back again":     {jump: func(h *hands) { h.set(years) }, later: func(h *hands) { h.set(-years) }, says: []string{"87600h0m0s", "-87600h0m0s"}},
		"back and right again":       {jump: func(h *hands) { h.set(-years) }, later: func(h *hands) { h.set(years) }, says: []string{"-87600h0m0s", "87600h0m0s"}},
		"a little":                   {jump: func(h *hands) { h.set(2 * time.Minute) }, later: func(h *hands) { h.set(-2 * time.Minute) }},
		"a reboot":                   {jump: func(h *hands) { h.reboot(0) }},
		"a reboot with 1970 before":  {jump: func(h *hands) { h.reboot(-years) }, later: func(h *hands) { h.set(years) }, says: []string{"-87600h0m0s", "87600h0m0s"}},
		"a reboot, forward":          {jump: func(h *hands) { h.reboot(years) }, says: []string{"87600h0m0s"}},
		"a host that was off longer": {jump: func(h *hands) { h.reboot(9 * day) }, says: []string{"216h0m0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			l, path := openTest(t)
			h := newHands(l)
			var told []time.Duration
			l.OnJump = func(by time.Duration) { told = append(told, by) }
			// Another process that writes to it says nothing more.
			other, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			h.of(other)
			// Ten entries, a day from one to the next, and the clock is set in the middle.
			for i := range 10 {
				if i == 5 && c.jump != nil {
					c.jump(h)
				}
				if i == 6 && c.later != nil {
					c.later(h)
				}
				for _, l := range []*Log{l, other} {
					record(t, l, 1)
				}
				h.pass(day)
				if n, err := l.Prune(100 * day); err != nil || n != 0 {
					t.Fatalf("day %d: %d entries are gone, %v", i, n, err)
				}
			}
			said, err := l.List(t.Context(), Query{Kind: KindClock})
			if err != nil || len(said) != len(c.says) || len(told) != len(c.says) {
				t.Fatalf("%+v, told %v, %v", said, told, err)
			}
			for i, e := range said {
				if e.Fields["by"] != c.says[i] || told[i].String() != c.says[i] {
					t.Errorf("%v, told %v, want %s", e.Fields, told[i], c.says[i])
				}
			}
			of := func() (n int) {
				t.Helper()
				all, err := l.List(t.Context(), Query{Kind: "request"})
				if err != nil {
					t.Fatal(err)
				}
				return len(all)
			}
			// The first is ten days old, and the others follow it.
			for want := 20; want > 0; want -= 2 {
				if n := of(); n != want {
					t.Fatalf("%d entries, want %d", n, want)
				}
				if _, err := l.Prune(10*day - time.Hour); err != nil {
					t.Fatal(err)
				}
				h.pass(day)
			}
			if n := of(); n != 0 {
				t.Errorf("%d entries are there still", n)
			}
			if _, err := l.Verify(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A log that cannot be written says so, and goes on when it can be again.
func TestFullDisk(t *testing.T) {
	l, _ := openTest(t)
	record(t, l, 1)
	l.db.SetMaxOpenConns(1) // the bound is of a connection
	var pages int
	if err := l.db.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if _, err := l.db.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
		t.Fatal(err)
	}
	full := Entry{Kind: "k", Fields: map[string]string{"a": strings.Repeat("x", maxText), "b": strings.Repeat("y", maxText), "c": strings.Repeat("z", maxText)}}
	var err error
	for range 10 {
		if err = l.Record(t.Context(), full); err != nil {
			break
		}
	}
	if !errors.Is(err, isolation.ErrUnavailable) || !strings.Contains(err.Error(), "full") {
		t.Fatalf("%v", err)
	}
	if _, err := l.db.Exec("PRAGMA max_page_count = 100000"); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(t.Context(), full); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if _, err := l.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("%v", err)
	}
}

func TestHeadText(t *testing.T) {
	h := Head{12, strings.Repeat("ab", 32)}
	if got, err := ParseHead(h.String()); err != nil || got != h {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "12", ":", "x:" + h.Hash, "12:", "12:zz", "-1:" + h.Hash, "12 :" + h.Hash, "12:" + h.Hash + "00"} {
		if _, err := ParseHead(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	l, err := Open(filepath.Join(b.TempDir(), "audit.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		if err := l.Record(context.Background(), Entry{Kind: "request", Tenant: "t", Subject: "s", Fields: map[string]string{"op": "run"}}); err != nil {
			b.Fatal(err)
		}
	}
}
