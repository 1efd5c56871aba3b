//go:build !linux

package worker

import (
	"errors"
	"io"
	"os"
)

// slice backs a memory by the Go heap, where address space cannot be reserved.
type slice struct {
	mem   []byte
	max   uint64
	image []byte
	base  uint64
}

func newRegion(size uint64, image *os.File, base uint64) (region, error) {
	s := &slice{max: size, base: base}
	if image != nil {
		var err error
		if s.image, err = io.ReadAll(image); err != nil {
			return nil, err
		}
	}
	return s, s.reset(base + uint64(len(s.image)))
}

func (s *slice) bytes(n uint64) ([]byte, error) {
	if n > s.max {
		return nil, errors.New("memory limit")
	}
	if n > uint64(len(s.mem)) {
		grown := make([]byte, n)
		copy(grown, s.mem)
		s.mem = grown
	}
	return s.mem[:n:n], nil
}

func (s *slice) reset(n uint64) error {
	clear(s.mem)
	if len(s.image) > 0 {
		b, err := s.bytes(max(n, s.base+uint64(len(s.image))))
		if err != nil {
			return err
		}
		copy(b[s.base:], s.image)
	}
	return nil
}
