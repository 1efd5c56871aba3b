package guestconn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/guestconn"
)

func is(t testing.TB, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: %v, want %v", what, err, class)
	}
}

func content(t testing.TB, f *guestconn.Files, name string) []byte {
	t.Helper()
	r, err := f.ReadFile(timeout(t), name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFiles(t *testing.T) {
	both(t, func(t *testing.T, c *guestconn.Conn) {
		f := &guestconn.Files{Conn: c}
		ctx := timeout(t)
		want := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
		if err := f.Mkdir(ctx, "/tmp/a/b", 0o750); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteFile(ctx, "/tmp/a/b/c", 0o640, bytes.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, f, "/tmp/a/b/c"); !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d", len(got), len(want))
		}
		r := shell(t, c, `stat -c '%a %u %g %s' /tmp/a /tmp/a/b /tmp/a/b/c; ln -s c /tmp/a/b/link; mkfifo /tmp/a/b/fifo; ls -A /tmp/a/b`)
		if got := strings.Fields(string(r.out)); got[0] != "755" || got[4] != "750" || !slices.Equal(got[8:12], []string{"640", "1000", "1000", "1600000"}) || !slices.Equal(got[12:], []string{"c", "fifo", "link"}) {
			t.Errorf("the sandbox sees %q %q", r.out, r.err)
		}
		list, err := f.ReadDir(ctx, "/tmp/a/b")
		if err != nil || len(list) != 3 {
			t.Fatalf("%v, %v", list, err)
		}
		slices.SortFunc(list, func(a, b fs.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
		link := list[2].(isolation.FileInfo)
		if list[0].Size() != int64(len(want)) || list[1].Mode().Type() != fs.ModeNamedPipe || link.Mode().Type() != fs.ModeSymlink || link.Link != "c" || link.UID != 1000 {
			t.Errorf("%+v", list)
		}
		if i, err := f.Stat(ctx, "/tmp/a/b/link"); err != nil || !i.Mode().IsRegular() || i.Mode().Perm() != 0o640 || time.Since(i.ModTime()) > time.Hour {
			t.Errorf("%+v, %v", i, err)
		}
		// A write replaces a link, and is whole or not at all.
		if err := f.WriteFile(ctx, "/tmp/a/b/link", 0o600, strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
		broken := io.MultiReader(strings.NewReader("y"), &failing{})
		if err := f.WriteFile(ctx, "/tmp/a/b/link", 0o600, broken); err == nil {
			t.Error("a reader that fails: no error")
		}
		if err := c.Ping(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the sandbox has a rest of the write that failed", func() bool {
			r = shell(t, c, `cat /tmp/a/b/link /tmp/a/b/c | wc -c; ls -A /tmp/a/b | wc -l`)
			return string(r.out) == "1600001\n3\n"
		})
		if err := f.Rename(ctx, "/tmp/a/b/c", "/tmp/d"); err != nil {
			t.Fatal(err)
		}
		is(t, "Remove of a directory that is not empty", f.Remove(ctx, "/tmp/a"), isolation.ErrFailedPrecondition)
		if err := errors.Join(f.RemoveAll(ctx, "/tmp/a"), f.Remove(ctx, "/tmp/d"), f.Mkdir(ctx, "/tmp/e", 0o755), f.Remove(ctx, "/tmp/e")); err != nil {
			t.Fatal(err)
		}
		_, err = f.Stat(ctx, "/tmp/a")
		is(t, "Stat of nothing", err, isolation.ErrNotFound)
	})
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, errors.New("broken") }

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestFilesHostile tries names and files that should lead nowhere.
func TestFilesHostile(t *testing.T) {
	c := listening(t).connect()
	f := &guestconn.Files{Conn: c}
	root := &guestconn.Files{Conn: c, User: "0"}
	ctx := timeout(t)
	r := shell(t, c, `cd /tmp; mkfifo fifo; ln -s / up; ln -s loop loop; ln -s /tmp/.. out; ln -s /proc/self/fd magic; mkdir closed; echo x > closed/f; chmod 0 closed
		i=0; while [ $i -lt 300 ]; do mkdir d; cd d || break; i=$((i+1)); done; cd /tmp; mkdir many; cd many; seq 1 300 | xargs touch; echo ok`)
	if string(r.out) != "ok\n" {
		t.Fatalf("%q %q", r.out, r.err)
	}
	for _, name := range []string{"", "relative", "a\x00b", "/" + strings.Repeat("a", 5000)} {
		_, err := f.Stat(ctx, name)
		is(t, fmt.Sprintf("Stat %.20q", name), err, isolation.ErrInvalidArgument)
		is(t, fmt.Sprintf("Remove %.20q", name), f.Remove(ctx, name), isolation.ErrInvalidArgument)
		is(t, fmt.Sprintf("Rename to %.20q", name), f.Rename(ctx, "/tmp/x", name), isolation.ErrInvalidArgument)
	}
	for _, name := range []string{"/tmp/fifo", "/dev/zero", "/tmp", "/tmp/loop"} {
		_, err := f.ReadFile(ctx, name)
		is(t, "ReadFile "+name, err, isolation.ErrInvalidArgument)
	}
	// Rights are those of the user: no capability of the guest's helps.
	for _, name := range []string{"/tmp/closed/f", "/root/x"} {
		_, err := f.ReadFile(ctx, name)
		is(t, "ReadFile "+name, err, isolation.ErrPermissionDenied)
		is(t, "WriteFile "+name, f.WriteFile(ctx, name, 0o644, strings.NewReader("")), isolation.ErrPermissionDenied)
	}
	is(t, "WriteFile /etc/passwd", f.WriteFile(ctx, "/etc/passwd", 0o644, strings.NewReader("")), isolation.ErrPermissionDenied)
	_, err := root.ReadFile(ctx, "/tmp/closed/f")
	is(t, "ReadFile as root without capabilities", err, isolation.ErrPermissionDenied)
	if err := root.WriteFile(ctx, "/root/x", 0o644, strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	// The guest's own process is not to be seen, and nothing is above the root.
	for _, name := range []string{"/proc/self/environ", "/proc/self/fd/3", "/proc/1/root/etc", "/tmp/magic/3"} {
		if _, err := f.ReadFile(ctx, name); err == nil {
			t.Errorf("ReadFile %s works", name)
		}
	}
	for _, name := range []string{"/../../../tmp/up/../../tmp/many/1", "/tmp/out/tmp/many/1"} {
		if i, err := f.Stat(ctx, name); err != nil || i.Name() != "1" {
			t.Errorf("%s: %v, %v", name, i, err)
		}
	}
	if list, err := f.ReadDir(ctx, "/tmp/many"); err != nil || len(list) != 300 {
		t.Errorf("%d entries, %v", len(list), err)
	}
	if err := errors.Join(f.RemoveAll(ctx, "/tmp/d"), f.RemoveAll(ctx, "/tmp/many")); err != nil {
		t.Error(err)
	}
	// What does not fit is refused, and leaves nothing.
	is(t, "64 MiB into 32", f.WriteFile(ctx, "/tmp/big", 0o644, io.LimitReader(&zeroes{}, 64<<20)), isolation.ErrResourceExhausted)
	if r := shell(t, c, `ls -A /tmp; echo x > /tmp/small && cat /tmp/small`); strings.Contains(string(r.out), ".axo") || !strings.HasSuffix(string(r.out), "x\n") {
		t.Errorf("%q %q", r.out, r.err)
	}
	// Who reads nothing holds up nobody.
	if err := f.WriteFile(ctx, "/tmp/large", 0o644, io.LimitReader(&zeroes{}, 1<<20)); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(ctx)
	stuck, err := f.ReadFile(short, "/tmp/large")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(stuck); !errors.Is(err, context.Canceled) {
		t.Errorf("a read that was canceled: %v", err)
	}
	if r := shell(t, c, "echo still here"); string(r.out) != "still here\n" {
		t.Errorf("%q", r.out)
	}
	// More at once than there may be.
	var open []io.Closer
	for range 100 {
		r, err := f.ReadFile(ctx, "/tmp/large")
		if err != nil {
			is(t, "too many at once", err, isolation.ErrResourceExhausted)
			break
		}
		open = append(open, r)
	}
	if len(open) > 64 || len(open) < 32 {
		t.Errorf("%d reads at once", len(open))
	}
	for _, r := range open {
		r.Close()
	}
}

type zeroes struct{}

func (*zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestWatch(t *testing.T) {
	c := listening(t).connect()
	f := &guestconn.Files{Conn: c}
	shell(t, c, "mkdir -p /tmp/w/sub")
	ctx, cancel := context.WithCancel(timeout(t))
	ch, err := f.Watch(ctx, "/tmp/w", true)
	if err != nil {
		t.Fatal(err)
	}
	shell(t, c, "echo x > /tmp/w/sub/a; mv /tmp/w/sub/a /tmp/w/b; rm /tmp/w/b; mkdir /tmp/w/new; sleep 0.3; touch /tmp/w/new/z")
	want := map[string]func(isolation.FileEvent) bool{
		"/tmp/w/sub/a created": func(e isolation.FileEvent) bool { return e.Name == "/tmp/w/sub/a" && e.Created },
		"/tmp/w/sub/a written": func(e isolation.FileEvent) bool { return e.Name == "/tmp/w/sub/a" && e.Written },
		"/tmp/w/sub/a removed": func(e isolation.FileEvent) bool { return e.Name == "/tmp/w/sub/a" && e.Removed },
		"/tmp/w/b created":     func(e isolation.FileEvent) bool { return e.Name == "/tmp/w/b" && e.Created },
		"/tmp/w/b removed":     func(e isolation.FileEvent) bool { return e.Name == "/tmp/w/b" && e.Removed },
		"/tmp/w/new/z created": func(e isolation.FileEvent) bool { return e.Name == "/tmp/w/new/z" && e.Created },
	}
	for end := time.After(20 * time.Second); len(want) > 0; {
		select {
		case e := <-ch:
			for name, is := range want {
				if is(e) {
					delete(want, name)
				}
			}
		case <-end:
			t.Fatalf("not told: %v", want)
		}
	}
	// More than anybody holds: it is said that some is lost, and the sandbox goes
	// on meanwhile.
	if r := shell(t, c, "cd /tmp/w; i=0; while [ $i -lt 30000 ]; do : > f; i=$((i+1)); done; echo done"); string(r.out) != "done\n" {
		t.Errorf("%q", r.out)
	}
	lost := false
	for end := time.After(20 * time.Second); !lost; {
		select {
		case e := <-ch:
			lost = e.Lost
		case <-end:
			t.Fatal("nothing is said to be lost")
		}
	}
	cancel()
	for range ch {
	}
	_, err = f.Watch(timeout(t), "/tmp/none", false)
	is(t, "Watch of nothing", err, isolation.ErrNotFound)
}
