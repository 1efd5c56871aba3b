package drivertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// halfCloser is what every connection of a port is besides.
type halfCloser interface{ CloseWrite() error }

// server starts a program that listens on a port.
func (s *suite) server(t testing.TB, port int) *run {
	t.Helper()
	r := s.start(t, job{program: Serve, args: []string{strconv.Itoa(port)}})
	r.awaitReady(t)
	return r
}

func dialPort(t testing.TB, s *suite, d isolation.PortDialer, port uint16) net.Conn {
	t.Helper()
	c, err := d.DialPort(s.ctx(t), port)
	if err != nil {
		t.Fatalf("DialPort: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(s.c.Patience)) // so that nothing hangs
	return c
}

func checkDialPort(t testing.TB, s *suite) {
	spec, _ := s.command(t, job{program: Exit0})
	ability[isolation.PortDialer](t, s, isolation.AbilityPorts, s.create(t, spec))
	const port = 8123
	r := s.server(t, port)
	d := ability[isolation.PortDialer](t, s, isolation.AbilityPorts, r.sb)

	// One that reads nothing holds up nobody else.
	stuck := dialPort(t, s, d, port)
	go func() { _, _ = io.Copy(stuck, endless{}) }()

	var wg sync.WaitGroup
	for i := range 4 {
		c := dialPort(t, s, d, port)
		want := bytes.Repeat([]byte(strconv.Itoa(i)+" of many\n"), int(s.c.Large/64/10))
		wg.Go(func() {
			_, err := c.Write(want)
			if err := errors.Join(err, c.(halfCloser).CloseWrite()); err != nil {
				t.Errorf("write: %v", err)
			}
		})
		wg.Go(func() {
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes came back, %v, want the %d that were sent", len(got), err, len(want))
			}
		})
	}
	wg.Wait()

	// Deadlines pass, and can be set anew; what is closed is.
	c := dialPort(t, s, d, port)
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read after its deadline: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(s.c.Patience))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Errorf("Write: %v", err)
	}
	if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
	s.within(t, "a Read of what is closed", func() {
		time.AfterFunc(time.Millisecond, func() { c.Close() })
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("Read of what is closed: no error")
		}
	})

	_, err := d.DialPort(s.ctx(t), port+1)
	is(t, "DialPort where nobody listens", err, isolation.ErrFailedPrecondition)
	_, err = d.DialPort(s.ctx(t), 0)
	is(t, "DialPort of port 0", err, isolation.ErrInvalidArgument)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if c, err := d.DialPort(ended, port); err == nil {
		c.Close() // it may be faster
	}

	// A connection ends with what serves it, and with the sandbox.
	last := dialPort(t, s, d, port)
	s.delete(t, r.sb)
	r.wait(t)
	if _, err := io.ReadAll(last); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection outlives its sandbox")
	}
	_, err = d.DialPort(s.ctx(t), port)
	is(t, "DialPort after Delete", err, isolation.ErrNotFound)
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func checkListenPort(t testing.TB, s *suite) {
	const port = 8124
	spec, _ := s.command(t, job{program: Exit0})
	sb := s.create(t, spec)
	a := ability[isolation.PortListener](t, s, isolation.AbilityListen, sb)
	connect := job{program: Connect, args: []string{strconv.Itoa(port), "question"}}
	s.command(t, connect)
	l, err := a.ListenPort(s.ctx(t), port)
	if err != nil {
		t.Fatalf("ListenPort: %v", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	wg.Go(func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(s.c.Patience))
				b, err := io.ReadAll(c)
				if err != nil {
					t.Errorf("read the question: %v", err)
				}
				if _, err = c.Write(append(b, ", answer"...)); err != nil {
					t.Errorf("answer: %v", err)
				}
				if i%2 == 0 {
					return // what was sent before Close arrives
				}
				if err := c.(halfCloser).CloseWrite(); err != nil {
					t.Errorf("CloseWrite: %v", err)
				}
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	for range 4 {
		r := s.startIn(t, sb, connect)
		succeeded(t, r.wait(t), r)
		if got := r.out.bytes(); string(got) != "question, answer" {
			t.Errorf("the program has %q", got)
		}
	}
	l.Close()
	r := s.startIn(t, sb, connect)
	if e := r.wait(t); e.Success() {
		t.Error("a program connects to what is closed")
	}
	served := s.server(t, port)
	_, err = ability[isolation.PortListener](t, s, isolation.AbilityListen, served.sb).ListenPort(s.ctx(t), port)
	is(t, "ListenPort where a program listens", err, isolation.ErrAlreadyExists)
}
