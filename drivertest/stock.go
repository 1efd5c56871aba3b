package drivertest

import (
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stock is what the test process has at one moment, to find what a driver
// leaves behind.
type stock struct {
	c          Config
	grace      time.Duration // for what has been let go to be gone
	goroutines []string
	fds        []string
	children   []string
	leftovers  []string
}

func takeStock(t testing.TB, c Config) *stock {
	// The runtime opens its poller once, with the first pipe.
	if r, w, err := os.Pipe(); err == nil {
		_, _ = r.Close(), w.Close()
	}
	s := &stock{c: c, grace: settleTime, goroutines: slices.Collect(maps.Keys(goroutines())), fds: descriptors(), children: children()}
	if c.Leftovers != nil {
		s.leftovers = c.Leftovers(t)
	}
	return s
}

// settleTime is the usual grace.
const settleTime = 5 * time.Second

// compare fails for everything that is there now and was not before.
func (s *stock) compare(t testing.TB) {
	t.Helper()
	var stacks map[string]string
	left := s.settle(t, "goroutines", s.goroutines, func() []string {
		stacks = goroutines()
		return slices.Collect(maps.Keys(stacks))
	})
	for _, id := range left {
		t.Logf("goroutine %s", stacks[id])
	}
	s.settle(t, "descriptors", s.fds, descriptors)
	s.settle(t, "child processes", s.children, children)
	if s.c.Leftovers != nil {
		s.settle(t, "things on the host", s.leftovers, func() []string { return s.c.Leftovers(t) })
	}
}

func (s *stock) settle(t testing.TB, what string, before []string, now func() []string) (left []string) {
	t.Helper()
	for end := time.Now().Add(s.grace); ; time.Sleep(10 * time.Millisecond) {
		if left = without(now(), before); len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			t.Errorf("%s are left: %q", what, left)
			return left
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

// goroutines returns the stacks of all but the calling one and those of other
// tests, by their ids, which are never used again.
func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	out := map[string]string{}
	_, others, _ := strings.Cut(string(buf), "\n\n") // the calling one is the first
	for stack := range strings.SplitSeq(others, "\n\n") {
		id, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if id != "" && !strings.Contains(stack, "created by testing.") && !strings.Contains(stack, "created by os/signal.") {
			out[id] = stack
		}
	}
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
