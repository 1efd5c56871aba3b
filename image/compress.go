package image

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/axocoatl/isolation"
)

// compression is told by the first bytes, not by what a manifest says.
type compression int

const (
	plain compression = iota
	gzipped
	zstandard
)

// maxWindow bounds the memory that a zstd frame may ask for.
const maxWindow = 128 << 20

func (c compression) mediaType() types.MediaType {
	switch c {
	case gzipped:
		return types.OCILayer
	case zstandard:
		return types.OCILayerZStd
	}
	return types.OCIUncompressedLayer
}

// sniff tells the compression of a stream without consuming it.
func sniff(r *bufio.Reader) (compression, error) {
	head, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return plain, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzipped, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstandard, nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return plain, &isolation.UnsupportedError{Feature: "xz compression", Need: "the file recompressed with gzip or zstd"}
	case bytes.HasPrefix(head, []byte("BZh")):
		return plain, &isolation.UnsupportedError{Feature: "bzip2 compression", Need: "the file recompressed with gzip or zstd"}
	}
	return plain, nil
}

// decompress returns the uncompressed stream.
func decompress(r io.Reader) (io.ReadCloser, compression, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	c, err := sniff(br)
	if err != nil {
		return nil, c, err
	}
	switch c {
	case gzipped:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, c, fmt.Errorf("gzip: %w", err)
		}
		return z, c, nil
	case zstandard:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, c, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), c, nil
	}
	return io.NopCloser(br), c, nil
}
