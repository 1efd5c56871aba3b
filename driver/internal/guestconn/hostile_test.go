package guestconn

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/wire"
)

// frames is a connection on which a guest says what it was given, whatever the
// host says.
type frames struct {
	io.Reader
	closed chan struct{}
}

func script(b []byte) *frames { return &frames{bytes.NewReader(b), make(chan struct{})} }

func (f *frames) Write(b []byte) (int, error) { return len(b), nil }

func (f *frames) Close() error {
	select {
	case <-f.closed:
	default:
		close(f.closed)
	}
	return nil
}

func hello() []byte {
	m := wire.HelloMessage{Version: wire.Version, Role: "guest"}
	return wire.Append(nil, wire.Hello, 0, m.Append(nil))
}

func vectors(t testing.TB) [][]byte {
	b, err := os.ReadFile("../../../guest/wire/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]struct{ Frame string }
	if err := json.Unmarshal(b, &golden); err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, v := range golden {
		frame, err := hex.DecodeString(v.Frame)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, frame)
	}
	return out
}

// awaitStream waits until a stream is opened, or the connection has ended.
func (c *Conn) awaitStream(n uint32) {
	for !c.opened(n) && !isClosed(c.gone) {
		time.Sleep(time.Millisecond / 10)
	}
}

// FuzzGuest has a guest say anything, while the host runs a program, reads a
// file, lists a directory, watches and asks. Nothing may panic or hang, and what
// is kept is bounded.
func FuzzGuest(f *testing.F) {
	all := vectors(f)
	for _, v := range all {
		f.Add(v)
		// The same for the streams that there are.
		for stream := byte(1); stream < 9; stream++ {
			v := bytes.Clone(v)
			v[8] = stream
			f.Add(append(wire.Append(nil, wire.Spawned, 1, (&wire.SpawnedMessage{PID: 1, StdinCredit: 100}).Append(nil)), v...))
		}
	}
	f.Add(bytes.Join(all, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		guest, host := net.Pipe()
		defer guest.Close()
		go func() { _, _ = io.Copy(io.Discard, guest) }() // what the host says
		asked := make(chan struct{})
		go func() {
			defer guest.Close()
			if _, err := guest.Write(hello()); err != nil {
				return
			}
			<-asked
			_, _ = guest.Write(b)
		}()
		c, err := Open(ctx, host, nil)
		if err != nil {
			t.Fatal(err)
		}
		files := &Files{Conn: c}
		done := make(chan struct{})
		n := 0
		do := func(f func()) {
			n++
			go func() {
				f()
				done <- struct{}{}
			}()
		}
		do(func() {
			p, err := c.Exec(ctx, &wire.ExecMessage{ID: "e", Args: []string{"x"}})
			if err != nil {
				return
			}
			go func() { _, _ = p.Write(make([]byte, 1<<20)) }()
			_, _ = p.Usage(ctx)
			_ = p.Stdout.Finish()
			_, _ = io.Copy(io.Discard, p.Stdout)
			_ = p.Stderr.Close()
			if m, err := p.Wait(); err == nil && m.Cause != wire.CauseExited && m.Cause != wire.CauseSignaled {
				t.Errorf("%+v", m)
			}
			p.Forget()
		})
		do(func() {
			if r, err := files.ReadFile(ctx, "/f"); err == nil {
				_, _ = io.Copy(io.Discard, r)
				r.Close()
			}
		})
		do(func() {
			list, _ := files.ReadDir(ctx, "/d")
			for _, i := range list {
				if strings.Contains(i.Name(), "/") || i.Name() == ".." {
					t.Errorf("a name of a listing: %q", i.Name())
				}
			}
		})
		do(func() { _ = files.WriteFile(ctx, "/w", 0o644, strings.NewReader("content")) })
		do(func() { _, _ = files.Stat(ctx, "/s") })
		do(func() {
			p, err := (&Ports{Conn: c}).DialPort(ctx, 80)
			if err != nil {
				return
			}
			go func() { _, _ = p.Write(make([]byte, 1<<20)) }()
			_ = p.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(io.Discard, p)
			p.Close()
		})
		do(func() {
			_ = (&Ports{Conn: c}).ask(ctx, wire.PortListen, 80)
		})
		do(func() {
			short, cancel := context.WithCancel(ctx)
			defer cancel()
			if ch, err := files.Watch(short, "/x", true); err == nil {
				cancel()
				for range ch {
				}
			}
		})
		c.awaitStream(uint32(n)) // they are numbered as they are opened
		close(asked)
		for range n {
			select {
			case <-done:
			case <-ctx.Done():
				buf := make([]byte, 1<<20)
				t.Fatalf("the host hangs:\n%s", buf[:runtime.Stack(buf, true)])
			}
		}
		c.Close()
	})
}

// TestHello: what does not begin with a good HELLO is no guest.
func TestHello(t *testing.T) {
	token := bytes.Repeat([]byte{7}, wire.TokenBytes)
	fail := wire.FailMessage{Class: "unsupported", Message: "no root"}
	old := wire.HelloMessage{Version: 99, Role: "guest"}
	worker := wire.HelloMessage{Version: wire.Version, Role: "wasm-run"}
	for name, c := range map[string]struct {
		say   []byte
		token []byte
		class error
	}{
		"nothing":       {nil, nil, io.EOF},
		"a worker":      {wire.Append(nil, wire.Hello, 0, worker.Append(nil)), nil, wire.ErrProtocol},
		"another time":  {wire.Append(nil, wire.Hello, 0, old.Append(nil)), nil, wire.ErrProtocol},
		"another frame": {wire.Append(nil, wire.Pong, 0, nil), nil, wire.ErrProtocol},
		"a failure":     {wire.Append(nil, wire.Fail, 0, fail.Append(nil)), nil, isolation.ErrUnsupported},
		"garbage":       {bytes.Repeat([]byte{0xff}, 100), nil, wire.ErrProtocol},
		"no token":      {bytes.Repeat([]byte{1}, maxSkip+1<<20), token, wire.ErrProtocol},
	} {
		rw := script(c.say)
		_, err := Open(context.Background(), rw, c.token)
		if !errors.Is(err, c.class) {
			t.Errorf("%s: %v, want %v", name, err, c.class)
		}
		<-rw.closed
	}
	// What is before the answer is dropped, wherever it is cut: so are answers to
	// others.
	for _, before := range [][]byte{nil, token[:31], bytes.Repeat([]byte{7}, 5), append(bytes.Clone(token), make([]byte, wire.NonceBytes)...), bytes.Repeat([]byte{9}, 100_000)} {
		guest, host := net.Pipe()
		go func() {
			mark := make([]byte, wire.TokenBytes+wire.NonceBytes)
			_, _ = io.ReadFull(guest, mark)
			_, _ = guest.Write(bytes.Join([][]byte{before, hello(), mark, hello()}, nil))
			guest.Close()
		}()
		c, err := Open(context.Background(), host, token)
		if err != nil {
			t.Errorf("%d bytes before: %v", len(before), err)
			continue
		}
		<-c.Gone()
	}
	// One that says nothing is not waited for.
	_, host := net.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, host, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}

// TestDeaf: a guest that reads nothing holds up no call beyond its context, and
// what waits for it is bounded.
func TestDeaf(t *testing.T) {
	guest, host := net.Pipe()
	defer guest.Close()
	go func() { _, _ = guest.Write(hello()) }()
	c, err := Open(context.Background(), host, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c.awaitStream(1)
		_, _ = guest.Write(wire.Append(nil, wire.Spawned, 1, (&wire.SpawnedMessage{PID: 5, StdinCredit: wire.InitialWindow}).Append(nil)))
	}()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p, err := c.Exec(ctx, &wire.ExecMessage{ID: "e", Args: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := c.Ping(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ping: %v", err)
	}
	if _, err := c.Exec(short, &wire.ExecMessage{ID: "f", Args: []string{"x"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Exec: %v", err)
	}
	if _, err := (&Files{Conn: c}).Stat(short, "/x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stat: %v", err)
	}
	if err := (&Files{Conn: c}).WriteFile(short, "/x", 0, io.LimitReader(zero{}, 64<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WriteFile: %v", err)
	}
	// When too much waits for it, it is given up.
	for range 20 {
		_, _ = c.Exec(short, &wire.ExecMessage{ID: "g", Args: []string{strings.Repeat("x", 900<<10)}})
	}
	select {
	case <-c.Gone():
	case <-ctx.Done():
		t.Error("a guest that reads nothing is kept")
	}
	if _, err := p.Wait(); err == nil {
		t.Error("its program has ended well")
	}
}

type zero struct{}

func (zero) Read(b []byte) (int, error) { return len(b), nil }

// TestViolations: each ends the connection, and every wait with it.
func TestViolations(t *testing.T) {
	spawned := wire.Append(nil, wire.Spawned, 1, (&wire.SpawnedMessage{PID: 5, StdinCredit: 1000}).Append(nil))
	exit := wire.Append(nil, wire.Exit, 1, (&wire.ExitMessage{Cause: wire.CauseExited}).Append(nil))
	window := func(of wire.Type, n uint64) []byte {
		m := wire.WindowMessage{Of: of, Bytes: n}
		return wire.Append(nil, wire.Window, 1, m.Append(nil))
	}
	flood := bytes.Repeat(wire.Append(nil, wire.Stdout, 1, make([]byte, wire.MaxData)), 3)
	for name, say := range map[string][]byte{
		"a stream that nobody opened":  wire.Append(nil, wire.Stdout, 77, []byte("x")),
		"output before the start":      wire.Append(nil, wire.Stdout, 1, []byte("x")),
		"an end before the start":      exit,
		"two starts":                   append(bytes.Clone(spawned), spawned...),
		"two ends":                     bytes.Join([][]byte{spawned, exit, exit}, nil),
		"a failure after the start":    append(bytes.Clone(spawned), wire.Append(nil, wire.Fail, 1, nil)...),
		"more output than the credit":  append(bytes.Clone(spawned), flood...),
		"more credit than there is":    append(bytes.Clone(spawned), window(wire.Stdin, 1<<20)...),
		"credit for what it sends":     append(bytes.Clone(spawned), window(wire.Stdout, 1)...),
		"output after its end":         bytes.Join([][]byte{spawned, wire.Append(nil, wire.Stdout, 1, nil), wire.Append(nil, wire.Stdout, 1, []byte("x"))}, nil),
		"usage that nobody asked for":  append(bytes.Clone(spawned), wire.Append(nil, wire.Usage, 1, nil)...),
		"a start with too much credit": wire.Append(nil, wire.Spawned, 1, (&wire.SpawnedMessage{StdinCredit: 1 << 40}).Append(nil)),
		"what only a host says":        append(bytes.Clone(spawned), wire.Append(nil, wire.Exec, 1, nil)...),
	} {
		guest, host := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, guest) }()
		go func() { _, _ = guest.Write(hello()) }()
		c, err := Open(context.Background(), host, nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c.awaitStream(1)
			_, _ = guest.Write(say)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		p, err := c.Exec(ctx, &wire.ExecMessage{ID: "e", Args: []string{"x"}})
		<-c.Gone()
		cancel()
		if !errors.Is(c.Err(), wire.ErrProtocol) {
			t.Errorf("%s: the connection ended with %v", name, c.Err())
		}
		if err == nil {
			_, werr := p.Wait()
			if werr == nil && name != "two ends" {
				t.Errorf("%s: the program has ended well", name)
			}
			if _, err := io.Copy(io.Discard, p.Stdout); err != nil {
				t.Error(err)
			}
		}
		guest.Close()
	}
}
