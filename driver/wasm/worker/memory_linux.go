package worker

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clearBelow is the size in bytes up to which writing zeros beats giving the
// pages back: a fault costs more than clearing a few pages does.
const clearBelow = 256 << 10

// mapping reserves address space, and takes pages only as they are touched. An
// image is mapped copy-on-write over its place, so that a fresh instance costs
// no copy of its data segments.
type mapping struct {
	mem   []byte // the whole reservation
	image []byte // the part of mem that holds the image
	base  uint64 // where image begins
}

// newRegion reserves size bytes. The image (nil: none) is a file whose first
// byte belongs at base, a multiple of the system's page size.
func newRegion(size uint64, image *os.File, base uint64) (region, error) {
	size = max(size, pageSize)
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes of memory: %w", size, err)
	}
	m := &mapping{mem: mem}
	if image == nil {
		return m, nil
	}
	info, err := image.Stat()
	if err != nil {
		return nil, fmt.Errorf("memory image: %w", err)
	}
	n := uint64(info.Size())
	if n == 0 || base%uint64(os.Getpagesize()) != 0 || base+n > size {
		return nil, fmt.Errorf("memory image of %d bytes at %d does not fit %d bytes", n, base, size)
	}
	addr := unsafe.Pointer(&mem[base])
	if _, err := unix.MmapPtr(int(image.Fd()), 0, addr, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED); err != nil {
		return nil, fmt.Errorf("map memory image: %w", err)
	}
	m.image, m.base = mem[base:base+n], base
	return m, nil
}

func (m *mapping) bytes(n uint64) ([]byte, error) {
	if n > uint64(len(m.mem)) {
		return nil, unix.ENOMEM
	}
	return m.mem[:n:n], nil
}

func (m *mapping) reset(n uint64) error {
	n = min(n, uint64(len(m.mem)))
	if m.image == nil && n <= clearBelow {
		clear(m.mem[:n])
		return nil
	}
	if n == 0 {
		return nil
	}
	// Anonymous pages read as zero afterwards, those of the image as the file.
	if err := unix.Madvise(m.mem[:n], unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("reset memory: %w", err)
	}
	return nil
}
