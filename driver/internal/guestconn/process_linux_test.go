package guestconn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
	"github.com/axocoatl/isolation/guest/wire"
)

// TestAttach loses the connection while programs run, and finds them again.
func TestAttach(t *testing.T) {
	s := listening(t)
	c := s.connect()
	ctx := timeout(t)
	counter := request("sh", "-c", `i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done; exit 3`)
	p, err := c.Exec(ctx, counter)
	if err != nil {
		t.Fatal(err)
	}
	cat := request("cat")
	cat.NoStdin = false
	q, err := c.Exec(ctx, cat)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Write([]byte("before\n")); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 100_000)
	if _, err := io.ReadFull(p.Stdout, first); err != nil {
		t.Fatal(err)
	}
	before := make([]byte, 7)
	if _, err := io.ReadFull(q.Stdout, before); err != nil {
		t.Fatal(err)
	}
	quick := request("sh", "-c", "echo quick; exit 4")
	if _, err := c.Exec(ctx, quick); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := p.Wait(); err == nil {
		t.Error("the end of a program is known on a connection that was closed")
	}

	d := s.connect()
	states := map[string]wire.ProcessState{}
	eventually(t, "three programs are there, one has ended, one is full", func() bool {
		d.Close()
		d = s.connect()
		clear(states)
		for _, st := range d.Hello().Processes {
			states[st.ID] = st
		}
		return len(states) == 3 && states[quick.ID].Ended && states[counter.ID].Stdout-states[counter.ID].StdoutHeld == 128<<10
	})
	if st := states[cat.ID]; st.Stdin != 7 || st.Stdout != 7 || st.Ended {
		t.Errorf("%+v", st)
	}
	// What was read is not acknowledged to the last byte: it can be had again.
	for _, bad := range []struct {
		m     wire.AttachMessage
		class error
	}{
		{wire.AttachMessage{ID: "nobody"}, isolation.ErrNotFound},
		{wire.AttachMessage{ID: counter.ID}, isolation.ErrFailedPrecondition},
		{wire.AttachMessage{ID: cat.ID, Stdout: 8}, isolation.ErrInvalidArgument},
	} {
		_, err := d.Attach(ctx, &bad.m)
		is(t, fmt.Sprintf("attach %+v", bad.m), err, bad.class)
	}
	p, err = d.Attach(ctx, &wire.AttachMessage{ID: counter.ID, Stdout: uint64(len(first))})
	if err != nil {
		t.Fatal(err)
	}
	r := collect(t, p)
	var want strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := string(first) + string(r.out); got != want.String() || r.Code != 3 {
		t.Errorf("%d bytes of %d, %+v", len(got), want.Len(), r.ExitMessage)
	}
	if q, err = d.Attach(ctx, &wire.AttachMessage{ID: cat.ID, Stdout: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Write([]byte("after\n")); err != nil {
		t.Fatal(err)
	}
	if err := q.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, q); string(r.out) != "ore\nafter\n" || r.Code != 0 {
		t.Errorf("%q %+v", r.out, r.ExitMessage)
	}
	if p, err = d.Attach(ctx, &wire.AttachMessage{ID: quick.ID}); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, p); string(r.out) != "quick\n" || r.Code != 4 {
		t.Errorf("%q %+v", r.out, r.ExitMessage)
	}
	if err := d.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if left := s.connect().Hello().Processes; len(left) != 0 {
		t.Errorf("after all ends were acknowledged: %+v", left)
	}
}

// TestAttachAgain loses the connection again and again while input and output
// are on their way: not a byte comes twice or never.
func TestAttachAgain(t *testing.T) {
	s := listening(t)
	ctx := timeout(t)
	c := s.connect()
	m := request("cat")
	m.NoStdin = false
	p, err := c.Exec(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	var all, got bytes.Buffer
	for i := range 200_000 {
		fmt.Fprintf(&all, "%6d\n", i)
	}
	want := all.Bytes()
	for round := range 25 {
		// Input goes on from what the guest has of it.
		go func(p *guestconn.Process) { _, _ = p.Write(want[p.StdinOffset():]) }(p)
		if _, err := io.CopyN(&got, p.Stdout, 30_000); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		c.Close()
		c = s.connect()
		if p, err = c.Attach(ctx, &wire.AttachMessage{ID: m.ID, Stdout: uint64(got.Len())}); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	go func() {
		_, _ = p.Write(want[p.StdinOffset():])
		_ = p.CloseStdin()
	}()
	got.Write(collect(t, p).out)
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes of %d, or others", got.Len(), len(want))
	}
}

// TestReplaced: a new connection takes the place of one that does nothing.
func TestReplaced(t *testing.T) {
	s := listening(t)
	old := s.connect()
	for range 20 {
		c := s.connect()
		if r := shell(t, c, "echo new"); string(r.out) != "new\n" {
			t.Errorf("%q", r.out)
		}
	}
	<-old.Gone()
	// One that sends nonsense ends alone.
	rw, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rw.Write(bytes.Repeat([]byte{0xff}, 100)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, rw)
	rw.Close()
	if r := shell(t, s.connect(), "echo well"); string(r.out) != "well\n" {
		t.Errorf("%q", r.out)
	}
}

// rss is the resident memory of the guest in bytes.
func (s *sandbox) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	var kb int64
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		s.t.Fatal(err)
	}
	return kb << 10
}

// TestFlood has one program write 2 GB that somebody reads, and another that
// nobody reads, and looks that others do not notice and nobody keeps it.
func TestFlood(t *testing.T) {
	s := listening(t)
	c := s.connect()
	ctx := timeout(t)
	stuck, err := c.Exec(ctx, request("yes"))
	if err != nil {
		t.Fatal(err)
	}
	flood, err := c.Exec(ctx, request("head", "-c", "2000000000", "/dev/zero"))
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	var wg sync.WaitGroup
	wg.Go(func() { n, _ = io.Copy(io.Discard, flood.Stdout) })
	for range 20 {
		if r := shell(t, c, "echo quick"); string(r.out) != "quick\n" {
			t.Errorf("%q", r.out)
		}
	}
	if m, err := flood.Wait(); err != nil || m.Code != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	wg.Wait()
	if n != 2_000_000_000 {
		t.Errorf("%d bytes came", n)
	}
	if rss := s.rss(); rss > 40<<20 {
		t.Errorf("the guest has %d bytes", rss)
	}
	// The program that nobody reads can be ended, and its end is told at once.
	if err := stuck.Kill(); err != nil {
		t.Fatal(err)
	}
	if m, err := stuck.Wait(); err != nil || m.Signal != 9 {
		t.Errorf("%+v, %v", m, err)
	}
	stuck.Forget()
	if _, err := io.Copy(io.Discard, stuck.Stdout); err != nil {
		t.Error(err)
	}
}

// TestStdinNeverRead: input that nobody takes stops its writer, and no one else.
func TestStdinNeverRead(t *testing.T) {
	s := listening(t)
	c := s.connect()
	m := request("sleep", "1000")
	m.NoStdin = false
	p, err := c.Exec(timeout(t), m)
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(p, &zeroes{})
		wrote <- n
	}()
	for range 5 {
		if r := run(t, c, request("cat"), strings.NewReader("x")); string(r.out) != "x" {
			t.Errorf("%q", r.out)
		}
	}
	if err := p.Signal(isolation.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r := collect(t, p)
	if r.Signal != uint64(isolation.SIGTERM) {
		t.Errorf("%+v", r.ExitMessage)
	}
	if n := <-wrote; n > 256<<10 {
		t.Errorf("%d bytes of input were taken for a program that reads none", n)
	}
	// One that ends without reading does not hold up who writes.
	if r := run(t, c, request("true"), io.LimitReader(&zeroes{}, 10<<20)); r.Code != 0 {
		t.Errorf("%+v", r.ExitMessage)
	}
}

// sleeping counts the programs of the sandbox that sleep.
const sleeping = `for p in /proc/[0-9]*/comm; do read c < $p && [ "$c" = sleep ] && echo x; done | wc -l`

// TestBackground: a program that leaves one behind which holds its output ends
// all the same, and what it wrote is there.
func TestBackground(t *testing.T) {
	c := listening(t).connect()
	r := shell(t, c, `(while :; do echo more; done) & echo first; exit 5`)
	if !bytes.HasPrefix(r.out, []byte("first\n")) && !bytes.Contains(r.out[:min(len(r.out), 1<<16)], []byte("first\n")) || r.Code != 5 {
		t.Errorf("%.40q %+v", r.out, r.ExitMessage)
	}
	r = shell(t, c, `sleep 1000 & echo out; exit 6`)
	if string(r.out) != "out\n" || r.Code != 6 {
		t.Errorf("%.40q %+v", r.out, r.ExitMessage)
	}
	// What was left behind goes on, and can be told.
	if r := shell(t, c, sleeping); strings.TrimSpace(string(r.out)) != "1" {
		t.Errorf("%q %q", r.out, r.err)
	}
	p, err := c.Exec(timeout(t), request("sh", "-c", `trap '' TERM; sleep 1000 & echo ready; while :; do sleep 1000; done`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.Stdout, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Signal(isolation.SIGTERM), p.Kill()); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, p); r.Signal != 9 {
		t.Errorf("%+v", r.ExitMessage)
	}
	eventually(t, "the kill of a group left some of it", func() bool {
		r := shell(t, c, sleeping)
		return strings.TrimSpace(string(r.out)) == "1"
	})
}

func TestTerminal(t *testing.T) {
	both(t, func(t *testing.T, c *guestconn.Conn) {
		m := request("sh", "-c", `tty >/dev/null && stty size; trap 'stty size; exit 8' WINCH; echo ready; while :; do sleep 0.05; done`)
		m.Tty, m.Rows, m.Cols, m.NoStdin = true, 30, 100, false
		p, err := c.Exec(timeout(t), m)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("30 100\r\nready\r\n"))
		if _, err := io.ReadFull(p.Stdout, got); err != nil || string(got) != "30 100\r\nready\r\n" {
			t.Errorf("%q, %v", got, err)
		}
		if err := p.Resize(isolation.TerminalSize{Rows: 40, Cols: 120}); err != nil {
			t.Fatal(err)
		}
		if r := collect(t, p); string(r.out) != "40 120\r\n" || r.Code != 8 || len(r.err) != 0 {
			t.Errorf("%q %q %+v", r.out, r.err, r.ExitMessage)
		}
		m = request("cat")
		m.Tty, m.NoStdin = true, false
		if p, err = c.Exec(timeout(t), m); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write([]byte("typed\n\x04")); err != nil {
			t.Fatal(err)
		}
		if r := collect(t, p); string(r.out) != "typed\r\ntyped\r\n" || r.Code != 0 {
			t.Errorf("%q %+v", r.out, r.ExitMessage)
		}
	})
}

// TestManyAtOnce runs more programs than there are processors, all with input
// and output.
func TestManyAtOnce(t *testing.T) {
	both(t, func(t *testing.T, c *guestconn.Conn) {
		var wg sync.WaitGroup
		for i := range 60 {
			m := request("sh", "-c", "cat; exit "+fmt.Sprint(i))
			m.NoStdin = false
			wg.Go(func() {
				p, err := c.Exec(timeout(t), m)
				if err != nil {
					t.Error(err)
					return
				}
				want := bytes.Repeat([]byte(fmt.Sprintf("%4d", i)), 10_000+i)
				go func() {
					_, _ = p.Write(want) // what is missing is seen below
					_ = p.CloseStdin()
				}()
				got, err := io.ReadAll(p.Stdout)
				e, werr := p.Wait()
				if err != nil || werr != nil || !bytes.Equal(got, want) || e.Code != uint64(i) {
					t.Errorf("%d: %d bytes of %d, %+v, %v, %v", i, len(got), len(want), e, err, werr)
				}
				p.Forget()
			})
		}
		wg.Wait()
	})
}

func TestIDs(t *testing.T) {
	c := listening(t).connect()
	m := request("sleep", "1000")
	p, err := c.Exec(timeout(t), m)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(timeout(t), m)
	is(t, "an id that is in use", err, isolation.ErrAlreadyExists)
	if u, err := p.Usage(timeout(t)); err != nil || u.CPU > uint64(time.Minute) {
		t.Errorf("%+v, %v", u, err)
	}
	_ = p.Kill()
	if r := collect(t, p); r.Signal != 9 {
		t.Errorf("%+v", r.ExitMessage)
	}
	if p, err = c.Exec(timeout(t), m); err != nil {
		t.Fatalf("an id that is free again: %v", err)
	}
	_ = p.Kill()
	collect(t, p)
	m.ID = ""
	_, err = c.Exec(timeout(t), m)
	is(t, "no id", err, isolation.ErrInvalidArgument)
	// One that is given up while it starts is ended.
	ctx, cancel := context.WithCancel(timeout(t))
	cancel()
	m.ID = "given-up"
	if _, err := c.Exec(ctx, m); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	eventually(t, "a program that was given up runs on", func() bool {
		r := shell(t, c, sleeping)
		return strings.TrimSpace(string(r.out)) == "0"
	})
	// What only a machine has is refused by a container.
	err = c.Sync(timeout(t), &wire.SyncMessage{Entropy: make([]byte, 32)})
	is(t, "SYNC", err, isolation.ErrUnsupported)
	is(t, "POWER", c.Power(timeout(t), true), isolation.ErrUnsupported)
	is(t, "MOUNT", c.Mount(timeout(t), &wire.MountMessage{Device: "vdb", Target: "/x", Type: "ext4"}), isolation.ErrUnsupported)
}
