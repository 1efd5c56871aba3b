//go:build !unix

package proc

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// pipeSource is the reading end of a pipe. Its reads know no deadline here, so
// it is left to its pump when background processes hold the other end.
type pipeSource struct {
	f      *os.File
	once   sync.Once
	hungUp atomic.Bool
}

func newPipeSource(f *os.File) *pipeSource { return &pipeSource{f: f} }

func (s *pipeSource) Read(b []byte) (int, error) {
	n, err := s.f.Read(b)
	if err != nil {
		s.hungUp.Store(true)
		err = io.EOF
	}
	return n, err
}

func (s *pipeSource) Finish() bool { return false }

func (s *pipeSource) Lingers() bool { return !s.hungUp.Load() }

func (s *pipeSource) Close() error {
	s.once.Do(func() {
		s.hungUp.Store(true)
		// It may wait for a Read that nothing can interrupt.
		go s.f.Close()
	})
	return nil
}
