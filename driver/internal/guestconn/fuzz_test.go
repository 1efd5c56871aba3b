package guestconn

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// FuzzHello: what begins a connection is a guest's HELLO that makes sense, or
// ends it.
func FuzzHello(f *testing.F) {
	f.Add(hello())
	for _, v := range vectors(f) {
		f.Add(v)
	}
	m := wire.HelloMessage{
		Version: wire.Version, Role: "guest", Notes: []string{"no groups"}, NeedsSync: true, Steps: []wire.Step{{Name: "root", Nanoseconds: 5}},
		Processes: []wire.ProcessState{{ID: "a", Stdout: 10, StdoutHeld: 5}, {ID: "b", Ended: true}},
	}
	f.Add(wire.Append(nil, wire.Hello, 0, m.Append(nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		rw := script(b)
		c, err := Open(t.Context(), rw, nil)
		if err != nil {
			<-rw.closed
			return
		}
		for _, p := range c.Hello().Processes {
			if isolation.ValidateID(p.ID) != nil || p.StdoutHeld > p.Stdout || p.StderrHeld > p.Stderr {
				t.Errorf("%+v is believed", p)
			}
		}
		if h := c.Hello(); h.Role != "guest" || len(h.Notes) > maxNotes || len(h.Execs) > 0 {
			t.Errorf("%+v is believed", h)
		}
		<-c.Gone()
		c.Close()
	})
}

// FuzzMark: however what is read is cut, the rest begins behind the first mark.
func FuzzMark(f *testing.F) {
	mark := []byte("abcabd")
	f.Add([]byte("abcabcabdrest"))
	f.Add([]byte("abcab"))
	f.Add([]byte("abcabdabcabd"))
	f.Add([]byte(strings.Repeat("abcab", 100) + "abcabd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, r := range map[string]io.Reader{"whole": bytes.NewReader(b), "bytes": iotest.OneByteReader(bytes.NewReader(b)), "halves": iotest.HalfReader(bytes.NewReader(b))} {
			rest, err := skipTo(r, mark)
			i := bytes.Index(b, mark)
			if i < 0 {
				if err == nil {
					t.Errorf("%s: %q has no mark, and %q is behind it", name, b, rest)
				}
				continue
			}
			more, rerr := io.ReadAll(r)
			if got := append(bytes.Clone(rest), more...); err != nil || rerr != nil || !bytes.Equal(got, b[i+len(mark):]) {
				t.Errorf("%s: behind the mark of %q is %q, %v", name, b, got, err)
			}
		}
	})
}

// FuzzRecords: a listing and events of any bytes give names that are names, or
// nothing.
func FuzzRecords(f *testing.F) {
	e := wire.FileEntry{Name: "x", Mode: 0o100644, Size: 5, Time: 1 << 62, UID: 1000, Link: "/etc"}
	f.Add(wire.AppendRecord(wire.AppendRecord(nil, e.Append(nil)), e.Append(nil)))
	v := wire.FileEvent{Name: "/a", Event: wire.EventCreate | wire.EventMeta}
	f.Add(wire.AppendRecord(nil, v.Append(nil)))
	f.Add([]byte{0, 0, 0x40, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), hangs)
		defer cancel()
		c := lie(t, func(l *liar) {
			for range 2 {
				q, ok := l.next(wire.File)
				if !ok {
					return
				}
				var m wire.FileMessage
				if m.Parse(q.Body) != nil {
					return
				}
				if m.Op == wire.FileWatch {
					l.say(wire.File, q.Stream, nil)
				}
				for rest := b; len(rest) > 0; {
					n := min(len(rest), 1000)
					if !l.say(wire.Stdout, q.Stream, rest[:n]) {
						return
					}
					rest = rest[n:]
				}
				l.say(wire.Stdout, q.Stream, nil)
				if m.Op == wire.FileList {
					l.say(wire.File, q.Stream, nil)
				}
			}
		})
		files := &Files{Conn: c}
		list, _ := files.ReadDir(ctx, "/")
		for _, i := range list {
			if n := i.Name(); n == "" || n == "." || n == ".." || len(n) > maxBase || strings.ContainsAny(n, "/\x00") {
				t.Errorf("a listing has %q", n)
			}
		}
		events, err := files.Watch(ctx, "/", true)
		if err != nil {
			return
		}
		for e := range events {
			if !e.Lost && !strings.HasPrefix(e.Name, "/") {
				t.Errorf("an event has %q", e.Name)
			}
		}
		if ctx.Err() != nil {
			t.Error("the host was held up")
		}
	})
}
