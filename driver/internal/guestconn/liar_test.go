package guestconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// liar is a guest whose answers are a test's.
type liar struct {
	net.Conn
	r *wire.Reader
}

// next is the host's next request, whatever credit or acknowledgement comes before.
func (l *liar) next(kinds ...wire.Type) (wire.Frame, bool) {
	for {
		f, err := l.r.Next()
		if err != nil {
			return f, false
		}
		for _, k := range kinds {
			if f.Type == k {
				return f, true
			}
		}
	}
}

// say sends a frame, and reports whether the host still listens.
func (l *liar) say(kind wire.Type, stream uint32, body []byte) bool {
	_, err := l.Write(wire.Append(nil, kind, stream, body))
	return err == nil
}

// spawned lets a program begin.
func (l *liar) spawned(stream uint32) bool {
	return l.say(wire.Spawned, stream, (&wire.SpawnedMessage{PID: 2, StdinCredit: wire.InitialWindow}).Append(nil))
}

// lie has a host talk to a guest.
func lie(t *testing.T, guest func(l *liar)) *Conn {
	t.Helper()
	theirs, ours := net.Pipe()
	l := &liar{Conn: theirs, r: wire.NewReader(theirs)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := theirs.Write(hello()); err == nil {
			guest(l)
		}
		_, _ = io.Copy(io.Discard, theirs)
	}()
	c, err := Open(t.Context(), ours, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		theirs.Close()
		<-done
	})
	return c
}

// heap is what this process keeps, in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// keeps fails when the process keeps more than so many bytes after f, with what
// f returns.
func keeps(t *testing.T, most int64, f func() any) {
	t.Helper()
	before := heap()
	kept := f()
	if grown := heap() - before; grown > most {
		t.Errorf("%d KiB more are kept, want at most %d", grown>>10, most>>10)
	}
	runtime.KeepAlive(kept)
}

// hangs ends a test that does not come to its end.
const hangs = 30 * time.Second

func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(hangs):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s has not ended:\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// TestSilentGuest: one that takes every request and never answers holds up no
// call beyond its context, and however often it is asked, little is kept.
func TestSilentGuest(t *testing.T) {
	c := lie(t, func(l *liar) {
		if f, ok := l.next(wire.Exec); ok {
			l.spawned(f.Stream)
		}
	})
	files := &Files{Conn: c}
	p, err := c.Exec(t.Context(), &wire.ExecMessage{ID: "e", Args: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	keeps(t, 4<<20, func() any {
		within(t, "asking", func() {
			for n := range 2000 {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Microsecond)
				var err error
				switch n % 10 {
				case 0:
					err = c.Ping(ctx)
				case 1:
					_, err = p.Usage(ctx)
				case 2:
					_, err = files.Stat(ctx, "/x")
				case 3:
					_, err = files.ReadFile(ctx, "/x")
				case 4:
					_, err = files.ReadDir(ctx, "/x")
				case 5:
					err = files.WriteFile(ctx, "/x", 0o644, strings.NewReader("x"))
				case 6:
					_, err = files.Watch(ctx, "/x", true)
				case 7:
					err = c.Prepare(ctx, "python", nil)
				case 8:
					_, err = (&Ports{Conn: c}).DialPort(ctx, 80)
				case 9:
					_, err = (&Ports{Conn: c}).ListenPort(ctx, 80)
				}
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errUnanswered) {
					t.Fatalf("question %d: %v", n, err)
				}
			}
		})
		return nil
	})
	p.mu.Lock()
	if n := len(p.asked); n > maxAsked {
		t.Errorf("%d questions wait for an answer", n)
	}
	p.mu.Unlock()
	c.mu.Lock()
	if n := len(c.live); n > 1 {
		t.Errorf("%d streams are kept", n)
	}
	c.mu.Unlock()
}

// TestProgramsThatNeverBegin: who gives up waiting for a program leaves something
// to end it by, and a guest cannot collect those.
func TestProgramsThatNeverBegin(t *testing.T) {
	c := lie(t, func(*liar) {})
	within(t, "starting", func() {
		for n := range 10 * maxUnbegun {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Microsecond)
			_, err := c.Exec(ctx, &wire.ExecMessage{ID: fmt.Sprint(n), Args: []string{"x"}})
			cancel()
			if err == nil {
				t.Fatal("a guest that says nothing has started a program")
			}
			if isClosed(c.gone) {
				if !errors.Is(c.Err(), errUnanswered) {
					t.Errorf("it was given up for %v", c.Err())
				}
				return
			}
		}
		t.Error("a guest that starts nothing is kept")
	})
}

// TestLateAnswers are dropped, and what is asked after them is answered.
func TestLateAnswers(t *testing.T) {
	c := lie(t, func(l *liar) {
		f, ok := l.next(wire.Ping, wire.File)
		for ok {
			late := f
			// The answer waits for the next question.
			if f, ok = l.next(wire.Ping, wire.File); !ok {
				return
			}
			kind := wire.Pong
			if late.Type == wire.File {
				kind = wire.File
			}
			l.say(kind, late.Stream, nil)
			l.say(wire.Fail, late.Stream, nil) // and another one
			l.say(wire.Stdout, late.Stream, []byte("content"))
			if f.Type == wire.Ping {
				l.say(wire.Pong, f.Stream, nil)
				f, ok = l.next(wire.Ping, wire.File)
			}
		}
	})
	short, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if _, err := (&Files{Conn: c}).Stat(short, "/x"); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		within(t, "the question after it", func() {
			if err := c.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCreditThatOverflows: credit that wraps around is refused, too.
func TestCreditThatOverflows(t *testing.T) {
	for _, n := range []uint64{1 << 63, 1<<63 - 1, 1<<64 - 1, 1<<64 - 100, 1<<64 - wire.InitialWindow} {
		c := lie(t, func(l *liar) {
			f, _ := l.next(wire.File)
			m := wire.WindowMessage{Of: wire.Stdin, Bytes: n}
			l.say(wire.Window, f.Stream, m.Append(nil))
		})
		within(t, "the file", func() {
			if err := (&Files{Conn: c}).WriteFile(t.Context(), "/x", 0o644, io.LimitReader(zero{}, 1<<20)); err == nil {
				t.Error("it was written")
			}
		})
		<-c.gone
		if !errors.Is(c.Err(), wire.ErrProtocol) {
			t.Errorf("%d bytes of credit for a file: %v", n, c.Err())
		}
		c = lie(t, func(l *liar) {
			f, _ := l.next(wire.Exec)
			l.spawned(f.Stream)
			m := wire.WindowMessage{Of: wire.Stdin, Bytes: n}
			l.say(wire.Window, f.Stream, m.Append(nil))
		})
		if p, err := c.Exec(t.Context(), &wire.ExecMessage{ID: "e", Args: []string{"x"}}); err == nil {
			within(t, "the program", func() {
				if _, err := p.Wait(); err == nil {
					t.Error("it ended well")
				}
			})
		}
		<-c.gone
		if !errors.Is(c.Err(), wire.ErrProtocol) {
			t.Errorf("%d bytes of credit for a program: %v", n, c.Err())
		}
	}
}

// TestGiantListing: a list of nothing but short entries is no more than any.
func TestGiantListing(t *testing.T) {
	for name, record := range map[string][]byte{
		"empty entries": nil,
		"short entries": (&wire.FileEntry{Name: "x"}).Append(nil),
		"long entries":  (&wire.FileEntry{Name: strings.Repeat("x", 8<<10)}).Append(nil),
	} {
		t.Run(name, func(t *testing.T) {
			records := []byte{}
			for len(records) < 32<<10 {
				records = wire.AppendRecord(records, record)
			}
			records = records[:len(records)-len(records)%(4+len(record))]
			c := lie(t, func(l *liar) {
				f, _ := l.next(wire.File)
				sent := 0
				for l.say(wire.Stdout, f.Stream, records) {
					if _, ok := l.next(wire.Window); !ok {
						return
					}
					// Just as much as is taken, or without an end.
					if sent += len(records); name != "long entries" && sent+len(records) > maxListing {
						l.say(wire.Stdout, f.Stream, nil)
						l.say(wire.File, f.Stream, nil)
						return
					}
				}
			})
			keeps(t, 16<<20, func() any {
				var list any
				within(t, "the listing", func() {
					ctx, cancel := context.WithTimeout(t.Context(), hangs/2)
					defer cancel()
					l, err := (&Files{Conn: c}).ReadDir(ctx, "/")
					if isolation.Class(err) != isolation.ErrResourceExhausted && !errors.Is(err, wire.ErrProtocol) {
						t.Errorf("%d entries, %v", len(l), err)
					}
					list = l
				})
				return list
			})
		})
	}
}

// TestNamesThatLeadAway: what a guest calls a file is not a path of the host's.
func TestNamesThatLeadAway(t *testing.T) {
	for _, name := range []string{"../../etc/passwd", "relative", "/a/../../etc", "/a//b", "/nul\x00", "/" + strings.Repeat("x", maxName), "/a/"} {
		if e, ok := event(&wire.FileEvent{Name: name, Event: wire.EventWrite}); ok {
			t.Errorf("an event of %.80q is told as %+v", name, e)
		}
	}
	for _, name := range []string{"/", "/a", "/a/b c", "/a/..b", "/new\nline"} {
		if e, ok := event(&wire.FileEvent{Name: name, Event: wire.EventWrite}); !ok || e.Name != name || !e.Written {
			t.Errorf("an event of %q is told as %+v, %t", name, e, ok)
		}
	}
	if e, ok := event(&wire.FileEvent{Event: wire.EventOverflow}); !ok || !e.Lost {
		t.Errorf("an overflow is told as %+v, %t", e, ok)
	}
	for _, name := range []string{"..", ".", "", "a/b", "\x00", "/", strings.Repeat("x", 300)} {
		if i := info(&wire.FileEntry{Name: name}); i.Base != "?" {
			t.Errorf("an entry %.80q is told as %q", name, i.Base)
		}
	}
}

// TestHelloThatLies: what HELLO says of programs must make sense.
func TestHelloThatLies(t *testing.T) {
	ok := wire.ProcessState{ID: "a", Stdin: 5, Stdout: 10, Stderr: 10, StdoutHeld: 3, StderrHeld: 10}
	change := func(f func(p *wire.ProcessState)) []wire.ProcessState {
		p := ok
		f(&p)
		return []wire.ProcessState{p}
	}
	for name, list := range map[string][]wire.ProcessState{
		"the same twice":          {ok, ok},
		"no id":                   change(func(p *wire.ProcessState) { p.ID = "" }),
		"a long id":               change(func(p *wire.ProcessState) { p.ID = strings.Repeat("x", 1<<16) }),
		"what was never written":  change(func(p *wire.ProcessState) { p.StdoutHeld = 11 }),
		"errors never written":    change(func(p *wire.ProcessState) { p.StderrHeld = 1 << 63 }),
		"more than can be":        change(func(p *wire.ProcessState) { p.Stdout = 1 << 63 }),
		"more input than can be":  change(func(p *wire.ProcessState) { p.Stdin = 1<<64 - 1 }),
		"more errors than can be": change(func(p *wire.ProcessState) { p.Stderr = 1<<64 - 1 }),
	} {
		m := wire.HelloMessage{Version: wire.Version, Role: "guest", Processes: list}
		if _, err := Open(t.Context(), script(wire.Append(nil, wire.Hello, 0, m.Append(nil))), nil); !errors.Is(err, wire.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := wire.HelloMessage{Version: wire.Version, Role: "guest", Processes: []wire.ProcessState{ok}}
	c, err := Open(t.Context(), script(wire.Append(nil, wire.Hello, 0, m.Append(nil))), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// As much as fits into a frame, and many of them.
	keeps(t, 8<<20, func() any {
		var all []*Conn
		m := wire.HelloMessage{Version: wire.Version, Role: "guest"}
		for range 60_000 {
			m.Notes = append(m.Notes, "x")
		}
		for range 16 {
			c, err := Open(t.Context(), script(wire.Append(nil, wire.Hello, 0, m.Append(nil))), nil)
			if err == nil {
				all = append(all, c)
			}
		}
		return all
	})
}

// TestOffsetsThatGoBack: input that a guest says it has had must be what a host
// can have sent.
func TestOffsetsThatGoBack(t *testing.T) {
	c := lie(t, func(l *liar) {
		f, _ := l.next(wire.Attach)
		l.say(wire.Spawned, f.Stream, (&wire.SpawnedMessage{PID: 2, Stdin: 1 << 63, StdinCredit: 1}).Append(nil))
	})
	within(t, "the attaching", func() {
		if _, err := c.Attach(t.Context(), &wire.AttachMessage{ID: "e"}); err == nil {
			t.Error("it was believed")
		}
	})
	// A program that was only just started has had none.
	c = lie(t, func(l *liar) {
		f, _ := l.next(wire.Exec)
		l.say(wire.Spawned, f.Stream, (&wire.SpawnedMessage{PID: 2, Stdin: 1, StdinCredit: 1}).Append(nil))
	})
	within(t, "the start", func() {
		if _, err := c.Exec(t.Context(), &wire.ExecMessage{ID: "e", Args: []string{"x"}}); err == nil {
			t.Error("it was believed")
		}
	})
}

// TestOutputThatTrickles: after the end of its program a guest has little time
// to say the rest, and no byte of it makes more.
func TestOutputThatTrickles(t *testing.T) {
	const patience = 40 * time.Millisecond
	c := lie(t, func(l *liar) {
		f, _ := l.next(wire.Exec)
		l.spawned(f.Stream)
		l.say(wire.Exit, f.Stream, (&wire.ExitMessage{Cause: wire.CauseExited}).Append(nil))
		go func() {
			for l.say(wire.Stdout, f.Stream, []byte("x")) {
				time.Sleep(patience / 4)
			}
		}()
	})
	p, err := c.Exec(t.Context(), &wire.ExecMessage{ID: "e", Args: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	p.Stdout.patience = patience
	p.Stdout.Finish()
	within(t, "the output", func() { _, _ = io.Copy(io.Discard, p.Stdout) })
}

// TestFloodOfFrames: frames of every kind for a stream that was given up, and
// empty ones for one that was not, are dropped as they come.
func TestFloodOfFrames(t *testing.T) {
	const frames = 100_000
	gaveUp := make(chan struct{})
	c := lie(t, func(l *liar) {
		f, _ := l.next(wire.Ping)
		<-gaveUp
		for n := range frames {
			if !l.say([]wire.Type{wire.Stdout, wire.Exit, wire.Spawned, wire.File, wire.Window, wire.Usage, wire.Pong}[n%7], f.Stream, nil) {
				return
			}
		}
		if f, ok := l.next(wire.Ping); ok {
			l.say(wire.Pong, f.Stream, nil)
		}
	})
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_ = c.Ping(short)
	close(gaveUp)
	keeps(t, 4<<20, func() any {
		within(t, "the flood", func() {
			if err := c.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
		return nil
	})
}

// TestEndThatIsNone: an end that cannot be is told as one that is not known, in
// one line.
func TestEndThatIsNone(t *testing.T) {
	for _, m := range []wire.ExitMessage{
		{}, {Cause: wire.CauseExited, Code: 256}, {Cause: wire.CauseSignaled}, {Cause: wire.CauseSignaled, Signal: 65},
		{Cause: wire.CauseTrap, Detail: "two\nlines \x1b[2J"}, {Cause: 99, Signal: 1 << 63, Code: 1 << 63},
	} {
		c := lie(t, func(l *liar) {
			f, _ := l.next(wire.Exec)
			l.spawned(f.Stream)
			l.say(wire.Exit, f.Stream, m.Append(nil))
		})
		p, err := c.Exec(t.Context(), &wire.ExecMessage{ID: "e", Args: []string{"x"}})
		if err == nil {
			_, err = p.Wait()
		}
		if err == nil || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%+v: %q", m, err)
		}
	}
	fail := wire.FailMessage{Class: "no such class", Message: "two\nlines \x1b[2J" + strings.Repeat("x", 1<<16)}
	if err := Failure(fail.Append(nil)); strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 2000 {
		t.Errorf("a failure: %.200q", err)
	}
}
