package main

import (
	"fmt"
	"io"
	"os"
)

// readDisk reads n bytes of a file in so many reads, past the page cache where the
// system can.
func readDisk(name string, n, reads int64) error {
	f, err := os.OpenFile(name, os.O_RDONLY|direct, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size := n / max(1, reads)
	b := aligned(int(size))
	for off := int64(0); off < n; off += size {
		if m, err := f.ReadAt(b, off); err != nil && err != io.EOF || m == 0 {
			return fmt.Errorf("%d bytes at %d: %w", m, off, err)
		}
	}
	return nil
}
