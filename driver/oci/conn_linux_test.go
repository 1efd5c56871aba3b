package oci

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
)

// hangs ends a test that does not come to its end.
const hangs = 20 * time.Second

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

// lying connects to a guest that says what a test has it say. The test has its
// end of the socket.
func lying(t *testing.T) (*conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	guest := os.NewFile(uintptr(fds[1]), "theirs")
	c := newConn(os.NewFile(uintptr(fds[0]), "ours"))
	c.member = func(int) bool { return true }
	if err := c.begin(&wire.HelloMessage{Version: wire.Version, Role: "guest"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		guest.Close()
		within(t, "the connection", func() { <-c.gone })
	})
	return c, guest
}

// say writes frames, with descriptors.
func say(t *testing.T, guest *os.File, frames []byte, files ...*os.File) {
	t.Helper()
	var rights []byte
	for _, f := range files {
		rights = append(rights, unix.UnixRights(int(f.Fd()))...)
	}
	rc, err := guest.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = rc.Write(func(fd uintptr) bool {
		_, err := unix.SendmsgN(int(fd), frames, rights, nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN
	})
	if err != nil {
		t.Fatal(err)
	}
}

// victim is a process, and what it is known by.
func victim(t *testing.T) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// TestRulesOfAContainersGuest: what breaks one ends the connection, and with it
// every wait for what it was to tell.
func TestRulesOfAContainersGuest(t *testing.T) {
	const stream = ownStreams + 1
	frame := func(kind wire.Type, body []byte) []byte { return wire.Append(nil, kind, stream, body) }
	spawned := frame(wire.Spawned, (&wire.SpawnedMessage{PID: 2}).Append(nil))
	exit := frame(wire.Exit, (&wire.ExitMessage{Cause: wire.CauseExited}).Append(nil))
	fail := frame(wire.Fail, (&wire.FailMessage{Class: "not found", Message: "two\nlines \x1b[2J"}).Append(nil))
	for name, c := range map[string]struct {
		before, say []byte
		file        bool // a pidfd comes with say
		member      bool
	}{
		"fails after the start":         {before: spawned, say: fail},
		"starts twice":                  {before: spawned, say: spawned, file: true},
		"ends before the start":         {say: exit},
		"prepares what is a program":    {say: frame(wire.Prepared, nil)},
		"prepares after the start":      {before: spawned, say: frame(wire.Prepared, nil)},
		"starts without a descriptor":   {say: spawned},
		"starts one of the host":        {say: spawned, file: true, member: true},
		"ends twice":                    {before: spawned, say: append(exit[:len(exit):len(exit)], exit...)},
		"says what only a host says":    {before: spawned, say: frame(wire.Exec, nil)},
		"speaks of nobody's":            {say: wire.Append(nil, wire.Exit, stream+7, nil)},
		"is silent, and gone":           {},
		"is silent after it, and gone":  {before: spawned},
		"half a frame":                  {before: spawned, say: exit[:5]},
		"a length that no frame has":    {before: spawned, say: []byte{0xff, 0xff, 0xff, 0xff, byte(wire.Exit), 0, 0, 0, 1}},
		"a file for something of files": {before: spawned, say: wire.Append(nil, wire.Stdout, 5, []byte("x"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, guest := lying(t)
			process := victim(t)
			if c.member {
				conn.member = func(int) bool { return false }
			}
			begun := make(chan *child, 1)
			go func() {
				ch, err := conn.spawn(context.Background(), &wire.SpawnMessage{Args: []string{"x"}}, nil)
				if err != nil {
					ch = nil
				}
				begun <- ch
			}()
			// It is asked for before it is answered.
			if _, err := guest.Read(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			var ch *child
			if c.before != nil {
				say(t, guest, c.before, process)
				within(t, "the start", func() { ch = <-begun })
				if ch == nil {
					t.Fatal("it has not begun")
				}
			}
			if c.file {
				say(t, guest, c.say, process)
			} else if c.say != nil {
				say(t, guest, c.say)
			}
			if strings.Contains(name, "gone") || strings.Contains(name, "half") {
				guest.Close()
			}
			if c.before == nil {
				within(t, "the start", func() { ch = <-begun })
			}
			if ch != nil {
				within(t, "the program", func() {
					if _, err := ch.Wait(); err == nil && name != "ends twice" {
						t.Error("it has ended well")
					} else if err != nil && strings.ContainsAny(err.Error(), "\n\x1b") {
						t.Errorf("%q", err)
					}
				})
			}
			within(t, "the connection", func() { <-conn.gone })
			if !conn.idle(context.Background()) {
				t.Error("a program is still live")
			}
		})
	}
}

// TestDeafGuestOfAContainer: one that reads nothing holds up no call beyond its
// context.
func TestDeafGuestOfAContainer(t *testing.T) {
	conn, _ := lying(t)
	big := &wire.SpawnMessage{Args: []string{strings.Repeat("x", 900<<10)}}
	within(t, "starting", func() {
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if _, err := conn.spawn(ctx, big, nil); err == nil {
				t.Error("a guest that reads nothing has started a program")
			}
			cancel()
		}
	})
	// A frame that went in part is followed by none.
	within(t, "the connection", func() { <-conn.gone })
	if _, err := conn.spawn(t.Context(), &wire.SpawnMessage{Args: []string{"x"}}, nil); err == nil {
		t.Error("a connection that has ended is used")
	}
}

// TestImpatientCallers: who gives up before a frame goes leaves a connection that
// works.
func TestImpatientCallers(t *testing.T) {
	conn, guest := lying(t)
	process := victim(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		_, _ = conn.spawn(gone, &wire.SpawnMessage{Args: []string{"x"}}, nil)
	}
	asked := make(chan error, 1)
	go func() {
		_, err := conn.spawn(context.Background(), &wire.SpawnMessage{Args: []string{"the last"}}, nil)
		asked <- err
	}()
	within(t, "the last", func() {
		r := wire.NewReader(guest)
		for {
			f, err := r.Next()
			if err != nil {
				t.Error(err)
				return
			}
			var m wire.SpawnMessage
			if err := m.Parse(f.Body); err != nil {
				t.Error(err)
			}
			if m.Args[0] == "the last" {
				say(t, guest, wire.Append(nil, wire.Spawned, f.Stream, (&wire.SpawnedMessage{PID: 2}).Append(nil)), process)
				break
			}
		}
		if err := <-asked; err != nil {
			t.Error(err)
		}
	})
}

// TestDescriptorsOfAContainer: those that nobody asked for do not stay, however
// many come.
func TestDescriptorsOfAContainer(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	conn, guest := lying(t)
	before := count()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	rc, err := guest.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for err == nil && sent < 10*maxFound {
		sent++
		werr := rc.Write(func(fd uintptr) bool {
			err = unix.Sendmsg(int(fd), []byte{0}, unix.UnixRights(int(null.Fd())), nil, unix.MSG_NOSIGNAL)
			return err != unix.EAGAIN
		})
		err = errors.Join(err, werr)
	}
	within(t, "the connection", func() { <-conn.gone })
	for range 100 {
		if count() <= before+1 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d descriptors, %d before", count(), before)
}
