package qemu

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hostile is a monitor that somebody else has taken over: serve talks on each
// connection.
func hostile(t *testing.T, serve func(c net.Conn)) (string, context.Context) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "q")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return path, ctx
}

const greeting = `{"QMP": {"version": {}, "capabilities": []}}` + "\n"

func TestMonitorOfAHostileQEMU(t *testing.T) {
	for name, serve := range map[string]func(c net.Conn){
		"closes":         func(net.Conn) {},
		"no greeting":    func(c net.Conn) { fmt.Fprintln(c, `{"return": {}}`) },
		"no JSON":        func(c net.Conn) { fmt.Fprintln(c, `hello`) },
		"endless line":   func(c net.Conn) { repeat(c, strings.Repeat("x", 1<<16)) },
		"endless events": func(c net.Conn) { fmt.Fprint(c, greeting); repeat(c, `{"event": "STOP"}`+"\n") },
		"an error":       func(c net.Conn) { fmt.Fprint(c, greeting, `{"error": {"class": "Generic", "desc": "no"}}`, "\n") },
	} {
		t.Run(name, func(t *testing.T) {
			path, ctx := hostile(t, serve)
			if m, err := dialMonitor(ctx, path); err == nil {
				m.close()
				t.Error("it was believed")
			} else if ctx.Err() != nil {
				t.Errorf("it held the host up: %v", err)
			}
		})
	}
}

// TestAnswersThatLie: what a QEMU that was taken over says of a restore is
// refused, or waited for no longer than the caller waits.
func TestAnswersThatLie(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		waits  bool
	}{
		"no object":      {answer: `{"return": "completed"}`},
		"a number":       {answer: `{"return": {"status": 5}}`},
		"failed":         {answer: `{"return": {"status": "failed", "error-desc": "` + strings.Repeat("x", 1<<16) + `"}}`},
		"cancelled":      {answer: `{"return": {"status": "cancelled"}}`},
		"both":           {answer: `{"return": {"status": "completed"}, "error": {"class": "C", "desc": "d"}}`},
		"nested":         {answer: `{"return": ` + strings.Repeat("[", 200_000) + `}`},
		"half":           {answer: `{"return": {"status"`},
		"another status": {answer: `{"return": {"status": "soon"}}`, waits: true},
		"no status":      {answer: `{"return": {}}`, waits: true},
		"null":           {answer: `{"return": null}`, waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			path, ctx := hostile(t, func(conn net.Conn) {
				fmt.Fprint(conn, greeting, `{"return": {}}`, "\n")
				repeat(conn, c.answer+"\n")
			})
			m, err := dialMonitor(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			defer m.close()
			if c.waits {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			err = m.migrated(ctx)
			if err == nil || (ctx.Err() != nil) != c.waits || len(err.Error()) > 3000 {
				t.Errorf("%.500v, %v", err, ctx.Err())
			}
		})
	}
}

// TestMonitorThatSaysNothing ends with the caller's context.
func TestMonitorThatSaysNothing(t *testing.T) {
	path, ctx := hostile(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := dialMonitor(ctx, path); err == nil || ctx.Err() == nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}

func repeat(c net.Conn, s string) {
	for {
		if _, err := c.Write([]byte(s)); err != nil {
			return
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{greeting, `{"return": {"status": "completed"}}`, `{"error": {"class": "x", "desc": "y"}}`, `{"event": "STOP"}`, "\n", "null\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &monitor{r: bufio.NewReader(bytes.NewReader(b))}
		for range 100 {
			if _, err := m.next(); err != nil {
				return
			}
		}
	})
}

func TestPanicked(t *testing.T) {
	m := &Machine{console: new(tail)}
	m.console.buf = []byte("[    1.0] VFS: mounted\r\n[    2.5] Kernel panic - not syncing: Attempted to kill init!\r\n[    2.6] Call Trace:\r\n")
	if got, want := m.Panicked(), "Kernel panic - not syncing: Attempted to kill init!"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	m.console.buf = []byte("all is well\n")
	if got := m.Panicked(); got != "" {
		t.Errorf("%q of a machine that is well", got)
	}
}
