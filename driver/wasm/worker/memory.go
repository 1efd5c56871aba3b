package worker

import (
	"github.com/tetratelabs/wazero/experimental"
)

const pageSize = 64 << 10 // of WebAssembly

// memory is the one linear memory of a worker. It is reserved once and made
// blank again between instances, which is far cheaper than to map and unmap
// it. It holds the memory limit: a growth beyond it is refused, and counted.
type memory struct {
	region region
	limit  uint64 // bytes; set for each process
	size   uint64 // bytes now in use
	dirty  uint64 // bytes that may differ from the blank state
	hits   uint64 // refused growths
}

// region is the address space behind a memory.
type region interface {
	// bytes returns the first n bytes, which may be read and written.
	bytes(n uint64) ([]byte, error)
	// reset makes the first n bytes blank: zero, but for the image.
	reset(n uint64) error
}

// Allocate implements experimental.MemoryAllocator for the next instance.
func (m *memory) Allocate(_, _ uint64) experimental.LinearMemory {
	m.size = 0
	return m
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size > m.limit {
		m.hits++
		return nil
	}
	b, err := m.region.bytes(size)
	if err != nil {
		m.hits++
		return nil
	}
	m.size = size
	m.dirty = max(m.dirty, size)
	return b
}

// Free implements experimental.LinearMemory. The region lives on.
func (m *memory) Free() {}

// begin sets the limits of the next process.
func (m *memory) begin(limit uint64) {
	m.limit = limit
	m.hits = 0
}

// reset makes the memory blank for the next instance.
func (m *memory) reset() error {
	err := m.region.reset(m.dirty)
	m.dirty = 0
	return err
}
