package rewrite

import (
	"encoding/binary"
	"math"
)

// reader reads the binary format (WebAssembly core specification, section 5)
// from hostile bytes. It panics with *Error, which Rewrite recovers: every
// read is checked, and errors end everything.
type reader struct {
	b    []byte
	pos  int
	base int // offset of b in the module
}

func (r *reader) fail(kind Kind, format string, a ...any) {
	panic(newError(kind, r.base+r.pos, format, a...))
}

func (r *reader) left() int { return len(r.b) - r.pos }

func (r *reader) byte() byte {
	if r.pos >= len(r.b) {
		r.fail(Truncated, "it ends in the middle of a value")
	}
	v := r.b[r.pos]
	r.pos++
	return v
}

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(r.left()) {
		r.fail(Truncated, "%d bytes are announced, %d are there", n, r.left())
	}
	v := r.b[r.pos : r.pos+int(n)]
	r.pos += int(n)
	return v
}

// u32 reads an unsigned LEB128 of at most 32 bits (section 5.2.2).
func (r *reader) u32() uint32 {
	var v uint32
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		if shift == 28 && c > 0x0f {
			break
		}
		v |= uint32(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
	r.fail(Malformed, "integer is longer than 32 bits")
	return 0
}

// skipLEB skips a LEB128 of at most max bytes.
func (r *reader) skipLEB(max int) {
	for range max {
		if r.byte() < 0x80 {
			return
		}
	}
	r.fail(Malformed, "integer is too long")
}

// s32 reads a signed LEB128 of at most 32 bits.
func (r *reader) s32() int32 {
	var v int64
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		v |= int64(c&0x7f) << shift
		if c < 0x80 {
			if c&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			if v < math.MinInt32 || v > math.MaxInt32 {
				break
			}
			return int32(v)
		}
	}
	r.fail(Malformed, "integer is longer than 32 bits")
	return 0
}

// count reads the length of a vector whose elements have at least one byte
// each, so that nothing is allocated for what cannot be there.
func (r *reader) count() int {
	n := r.u32()
	if uint64(n) > uint64(r.left()) {
		r.fail(Truncated, "%d elements are announced, %d bytes are left", n, r.left())
	}
	return int(n)
}

func (r *reader) name() string { return string(r.bytes(r.u32())) }

// sub returns a reader of the next n bytes.
func (r *reader) sub(n uint32) *reader {
	base := r.base + r.pos
	return &reader{b: r.bytes(n), base: base}
}

func appendU32(b []byte, v uint32) []byte { return binary.AppendUvarint(b, uint64(v)) }

// appendS64 appends a signed LEB128.
func appendS64(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}
