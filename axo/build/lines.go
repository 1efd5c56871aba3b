package build

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

// Bounds of what is told of a step's output.
const (
	maxLine  = 4096
	maxLines = 5000
)

// lines are those of a step's program.
type lines struct {
	in   *Input
	step string

	mu sync.Mutex
	n  int // guarded by mu
}

func (l *lines) tell(level, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	switch {
	case l.n == maxLines+1:
		line = "... and more lines, which are not told"
	case l.n > maxLines:
		return
	}
	l.in.Log(Entry{time.Now(), level, strings.ToValidUTF8(line, "\uFFFD"), l.step})
}

// stream cuts what a program writes into lines. It is written to by one goroutine.
type stream struct {
	l     *lines
	level string
	rest  []byte
}

// Write implements [io.Writer].
func (s *stream) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		s.rest = append(s.rest, line...)
		if ok || len(s.rest) > maxLine {
			s.end()
		}
		b = rest
	}
	return n, nil
}

// end tells what has no end of line.
func (s *stream) end() {
	line := strings.TrimRight(string(s.rest[:min(len(s.rest), maxLine)]), "\r")
	s.rest = s.rest[:0]
	if line != "" {
		s.l.tell(s.level, line)
	}
}
