//go:build unix

package proc

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// pipeSource is the reading end of a pipe whose other end a process has.
type pipeSource struct {
	f    *os.File
	once sync.Once
	err  error

	ask    sync.Once
	wakes  bool
	quota  int         // what may still be taken once asked to finish
	swept  bool        // what was there is delivered: from here on it lingers
	hungUp atomic.Bool // no writer is left
}

func newPipeSource(f *os.File) *pipeSource { return &pipeSource{f: f, quota: BufBytes} }

func (s *pipeSource) Read(b []byte) (int, error) {
	n, err := s.f.Read(b)
	if !errors.Is(err, os.ErrDeadlineExceeded) || s.swept {
		if err != nil {
			s.hungUp.Store(true)
		}
		return n, err
	}
	// The runtime refuses to read after a deadline; the pipe does not.
	if n := s.sweep(b); n > 0 {
		return n, nil
	}
	s.swept = true
	if err := s.f.SetReadDeadline(time.Time{}); err != nil {
		s.hungUp.Store(true)
	}
	return 0, io.EOF
}

// sweep takes what is in the pipe, but no more than it can hold: a background
// process that writes on must not keep it going.
func (s *pipeSource) sweep(b []byte) int {
	rc, err := s.f.SyscallConn()
	if err != nil || s.quota == 0 {
		return 0
	}
	n := 0
	_ = rc.Control(func(fd uintptr) {
		for {
			n, err = syscall.Read(int(fd), b[:min(len(b), s.quota)])
			if err != syscall.EINTR {
				return
			}
		}
	})
	switch {
	case err == nil && n == 0:
		s.hungUp.Store(true)
	case n < 0:
		n = 0
	}
	s.quota -= n
	return n
}

// Finish acts once: after the sweep a deadline would end the lingering.
func (s *pipeSource) Finish() bool {
	s.ask.Do(func() { s.wakes = s.f.SetReadDeadline(time.Unix(1, 0)) == nil })
	return s.wakes
}

func (s *pipeSource) Lingers() bool { return !s.hungUp.Load() }

func (s *pipeSource) Close() error {
	s.once.Do(func() { s.hungUp.Store(true); s.err = s.f.Close() })
	return s.err
}
