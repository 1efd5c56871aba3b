package drivertest

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// stock is what the test process has at one moment, to find what a driver
// leaves behind.
type stock struct {
	c          Config
	goroutines goleak.Option
	fds        []string
	children   []string
	leftovers  []string
}

func takeStock(t testing.TB, c Config) *stock {
	// The runtime opens its poller once, with the first pipe.
	if r, w, err := os.Pipe(); err == nil {
		_, _ = r.Close(), w.Close()
	}
	s := &stock{c: c, goroutines: goleak.IgnoreCurrent(), fds: descriptors(), children: children()}
	if c.Leftovers != nil {
		s.leftovers = c.Leftovers(t)
	}
	return s
}

// settleTime is how long what has been let go may take to be gone.
const settleTime = 5 * time.Second

// compare fails for everything that is there now and was not before.
func (s *stock) compare(t testing.TB) {
	t.Helper()
	if err := goleak.Find(s.goroutines); err != nil {
		t.Errorf("goroutines are left: %v", err)
	}
	s.settle(t, "descriptors", s.fds, descriptors)
	s.settle(t, "child processes", s.children, children)
	if s.c.Leftovers != nil {
		s.settle(t, "things on the host", s.leftovers, func() []string { return s.c.Leftovers(t) })
	}
}

func (s *stock) settle(t testing.TB, what string, before []string, now func() []string) {
	t.Helper()
	for end := time.Now().Add(settleTime); ; time.Sleep(10 * time.Millisecond) {
		left := without(now(), before)
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s are left: %q", what, left)
			return
		}
	}
}

// without returns what is in list more often than in minus.
func without(list, minus []string) []string {
	have := map[string]int{}
	for _, v := range minus {
		have[v]++
	}
	var out []string
	for _, v := range list {
		if have[v]--; have[v] < 0 {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

// descriptors lists the open ones by what they are, not by number: a number is
// used again. What lists them does not count.
func descriptors() []string {
	var out []string
	entries, _ := os.ReadDir("/proc/self/fd") // elsewhere there is none, and nothing is compared
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasSuffix(to, "/fd") {
			continue
		}
		if strings.HasPrefix(to, "pipe:") || strings.HasPrefix(to, "socket:") {
			to, _, _ = strings.Cut(to, ":")
		}
		out = append(out, to)
	}
	return out
}

// children lists this process's children, zombies included.
func children() []string {
	if runtime.GOOS != "linux" {
		return nil
	}
	var out []string
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it ended meanwhile
		}
		// The name, in parentheses, may have any character.
		line := string(b)
		i, j := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
		if i < 0 || j < i {
			continue
		}
		rest := strings.Fields(line[j+1:])
		if len(rest) > 1 && rest[1] == strconv.Itoa(os.Getpid()) {
			out = append(out, line[:j+1])
		}
	}
	return out
}
