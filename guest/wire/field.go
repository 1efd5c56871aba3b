package wire

import (
	"encoding/binary"
	"fmt"
)

// Control bodies are sequences of fields: u8 tag, u32 big-endian length,
// value. Integers are 8 bytes big-endian. A tag may repeat where its message
// says so. A reader refuses an unknown tag: both sides are of one version.

const fieldHeader = 5

func appendBytes[T ~string | ~[]byte](b []byte, tag byte, v T) []byte {
	b = append(b, tag)
	b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
	return append(b, v...)
}

// appendText leaves out an empty string.
func appendText(b []byte, tag byte, v string) []byte {
	if v == "" {
		return b
	}
	return appendBytes(b, tag, v)
}

// appendUint leaves out a zero.
func appendUint(b []byte, tag byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = append(b, tag, 0, 0, 0, 8)
	return binary.BigEndian.AppendUint64(b, v)
}

// fields calls each with every field of body, in order.
func fields(body []byte, each func(tag byte, v value) error) error {
	for len(body) > 0 {
		if len(body) < fieldHeader {
			return fmt.Errorf("%w: field header of %d bytes", ErrProtocol, len(body))
		}
		tag, n := body[0], binary.BigEndian.Uint32(body[1:])
		body = body[fieldHeader:]
		if uint64(n) > uint64(len(body)) {
			return fmt.Errorf("%w: field %d of %d bytes, %d are there", ErrProtocol, tag, n, len(body))
		}
		if err := each(tag, value(body[:n])); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}

type value []byte

func (v value) uint(dst *uint64) error {
	if len(v) != 8 {
		return fmt.Errorf("%w: integer of %d bytes", ErrProtocol, len(v))
	}
	*dst = binary.BigEndian.Uint64(v)
	return nil
}

func (v value) text(dst *string) error {
	*dst = string(v)
	return nil
}

// count adds one of at most limit elements to a list.
func (v value) list(dst *[]string, limit int) error {
	if len(*dst) >= limit {
		return fmt.Errorf("%w: more than %d elements", ErrProtocol, limit)
	}
	*dst = append(*dst, string(v))
	return nil
}

func unknown(message string, tag byte) error {
	return fmt.Errorf("%w: %s has no field %d", ErrProtocol, message, tag)
}
