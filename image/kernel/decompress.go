package kernel

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"

	"github.com/axocoatl/isolation"
)

// maxWindow bounds what a compressed stream makes its reader keep. Kernels are
// compressed with windows of up to 128 MiB (zstd --long=27, scripts/Makefile.lib).
const maxWindow = 128 << 20

// formats are told by their first bytes.
var formats = []struct {
	magic string
	open  func(io.Reader) (io.Reader, func(), error)
}{
	{"\x1f\x8b", func(r io.Reader) (io.Reader, func(), error) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, err
		}
		z.Multistream(false) // a kernel's payload has other bytes after it
		return z, func() { z.Close() }, nil
	}},
	{"\xfd7zXZ\x00", func(r io.Reader) (io.Reader, func(), error) {
		// With the x86 filter, which kernels are packed with.
		z, err := xz.NewReader(r, maxWindow)
		if err != nil {
			return nil, nil, err
		}
		z.Multistream(false)
		return z, func() {}, nil
	}},
	{"\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, func(), error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}},
	{"\x02\x21\x4c\x18", openLZ4}, // the legacy format
	{"\x04\x22\x4d\x18", openLZ4},
	{"BZh", func(r io.Reader) (io.Reader, func(), error) { return bzip2.NewReader(r), func() {}, nil }},
}

func openLZ4(r io.Reader) (io.Reader, func(), error) { return lz4.NewReader(r), func() {}, nil }

// decompress returns the uncompressed stream of r, which is r itself if nothing
// says that it is compressed.
func decompress(r io.Reader) (_ io.Reader, done func(), err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			z, done, err := f.open(br)
			if err != nil {
				return nil, nil, refuse("compressed data: %v", err)
			}
			return z, done, nil
		}
	}
	return br, func() {}, nil
}

// compressed reports whether b begins as one of the formats does.
func compressed(b []byte) bool {
	for _, f := range formats {
		if bytes.HasPrefix(b, []byte(f.magic)) {
			return true
		}
	}
	return false
}

// copyLimited copies all of r, if that is not more than limit bytes. It says
// tooLarge otherwise.
func copyLimited(w io.Writer, r io.Reader, limit int64, what string) (int64, error) {
	n, err := io.Copy(w, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = tooLarge(what, limit)
	}
	return n, err
}

func tooLarge(what string, limit int64) error {
	return fmt.Errorf("%s has more than %d bytes: %w", what, limit, isolation.ErrResourceExhausted)
}

// refuse makes an error of class InvalidArgument.
func refuse(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, isolation.ErrInvalidArgument)...)
}
