package guestconn

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// TestPortViolations: a guest that breaks a rule of a connection loses all of them.
func TestPortViolations(t *testing.T) {
	window := func(of wire.Type, n uint64) []byte { return (&wire.WindowMessage{Of: of, Bytes: n}).Append(nil) }
	type said struct {
		kind wire.Type
		body []byte
	}
	done := said{wire.Port, nil}
	data := said{wire.Stdout, make([]byte, wire.MaxData)}
	for name, all := range map[string][]said{
		"data before the answer":      {{wire.Stdout, []byte("x")}},
		"credit before the answer":    {{wire.Window, window(wire.Stdin, 1)}},
		"two answers":                 {done, done},
		"more data than the credit":   {done, data, data, data},
		"more credit than there is":   {done, {wire.Window, window(wire.Stdin, 1)}},
		"credit for what it sends":    {done, {wire.Window, window(wire.Stdout, 1)}},
		"data after its end":          {done, {wire.Stdout, nil}, {wire.Stdout, []byte("x")}},
		"what is of programs":         {done, {wire.Exit, (&wire.ExitMessage{Cause: wire.CauseExited}).Append(nil)}},
		"an answer that is no answer": {{wire.Port, []byte{9}}},
	} {
		c := lie(t, func(l *liar) {
			f, _ := l.next(wire.Port)
			for _, s := range all {
				l.say(s.kind, f.Stream, s.body)
			}
		})
		p, err := (&Ports{Conn: c}).DialPort(t.Context(), 80)
		within(t, name, func() { <-c.Gone() })
		if !errors.Is(c.Err(), wire.ErrProtocol) {
			t.Errorf("%s: the connection ended with %v", name, c.Err())
		}
		if err != nil {
			continue
		}
		within(t, name, func() {
			if _, err := io.Copy(io.Discard, p); err == nil && name != "data after its end" {
				t.Errorf("%s: the connection has ended well", name)
			}
		})
		if _, err := p.Write([]byte("x")); err == nil {
			t.Errorf("%s: it takes more", name)
		}
	}
}

// TestPortClosedMeanwhile: what a guest sends is no violation where the reader has found
// the connection just before it was closed here.
func TestPortClosedMeanwhile(t *testing.T) {
	for _, dialed := range []bool{false, true} {
		c := lie(t, func(l *liar) {
			f, _ := l.next(wire.Port)
			if dialed {
				l.say(wire.Port, f.Stream, nil)
			}
			l.next(wire.Kill)
			if f, ok := l.next(wire.Ping); ok {
				l.say(wire.Pong, f.Stream, nil)
			}
		})
		s, err := (&Ports{Conn: c}).begin(wire.PortConnect, 80)
		if err != nil {
			t.Fatal(err)
		}
		if dialed {
			<-s.answer
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, f := range []wire.Frame{
			{Type: wire.Port, Stream: s.stream}, {Type: wire.Stdout, Stream: s.stream, Body: []byte("late")}, {Type: wire.Stdout, Stream: s.stream},
			{Type: wire.Window, Stream: s.stream, Body: (&wire.WindowMessage{Of: wire.Stdin, Bytes: 1}).Append(nil)},
		} {
			if err := s.frame(f); err != nil {
				t.Errorf("dialed: %v: %s: %v", dialed, f.Type, err)
			}
		}
		if err := c.Ping(t.Context()); err != nil {
			t.Errorf("dialed: %v: %v", dialed, err)
		}
	}
}

// TestPortOfASilentGuest: one that gives no credit holds up who writes until his
// deadline, also one that he sets meanwhile, and nobody else.
func TestPortOfASilentGuest(t *testing.T) {
	c := lie(t, func(l *liar) {
		f, _ := l.next(wire.Port)
		l.say(wire.Port, f.Stream, nil)
		if f, ok := l.next(wire.Ping); ok {
			l.say(wire.Pong, f.Stream, nil)
		}
	})
	p, err := (&Ports{Conn: c}).DialPort(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan int)
	go func() {
		n, err := p.Write(make([]byte, 4*wire.InitialWindow))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write: %d, %v", n, err)
		}
		wrote <- n
	}()
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	_ = p.SetWriteDeadline(time.Now().Add(time.Millisecond))
	within(t, "a write without credit", func() {
		if n := <-wrote; n > wire.InitialWindow {
			t.Errorf("%d bytes are written, for %d there is credit", n, wire.InitialWindow)
		}
	})
	go func() { time.Sleep(time.Millisecond); p.Close() }()
	within(t, "a read of what is closed", func() {
		if _, err := p.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read: %v", err)
		}
	})
	if err := p.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
	c.mu.Lock()
	if n := len(c.live); n > 0 {
		t.Errorf("%d streams are kept", n)
	}
	c.mu.Unlock()
}

// TestPortThatBreaks: what came before is read, and then why it ended.
func TestPortThatBreaks(t *testing.T) {
	c := lie(t, func(l *liar) {
		f, _ := l.next(wire.Port)
		l.say(wire.Port, f.Stream, nil)
		l.say(wire.Stdout, f.Stream, []byte("some"))
		l.say(wire.Fail, f.Stream, (&wire.FailMessage{Message: "connection reset"}).Append(nil))
		f, _ = l.next(wire.Port)
		l.say(wire.Fail, f.Stream, (&wire.FailMessage{Class: isolation.ErrFailedPrecondition.Error(), Message: "refused"}).Append(nil))
	})
	ports := &Ports{Conn: c}
	p, err := ports.DialPort(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(p)
	if string(b) != "some" || err == nil || err.Error() != "connection reset" {
		t.Errorf("%q, %v", b, err)
	}
	p.Close()
	if _, err := ports.DialPort(t.Context(), 80); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("a port that nobody listens on: %v", err)
	}
}
