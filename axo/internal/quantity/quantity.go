// Package quantity has sizes and times as people write them in flags and files.
package quantity

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
)

// ParseSize reads "64M", "64MiB", "1.5G" or a number of bytes. Units are powers of
// 1024. Its error is of class InvalidArgument.
func ParseSize(v string) (int64, error) {
	number := strings.TrimRight(v, "kKmMgGtTiIbB")
	unit := strings.ToLower(v[len(number):])
	shift, ok := map[string]uint{
		"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20, "g": 30, "gb": 30, "gib": 30, "t": 40, "tb": 40, "tib": 40,
	}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(n > 0) || n*float64(int64(1)<<shift) > math.MaxInt64/2 {
		return 0, fmt.Errorf("size %.80q: want a number above zero with an optional unit K, M, G or T, such as 64M: %w", v, isolation.ErrInvalidArgument)
	}
	return int64(n * float64(int64(1)<<shift)), nil
}

// Size is a number of bytes, written as ParseSize reads it.
type Size int64

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(b []byte) error {
	n, err := ParseSize(string(b))
	*s = Size(n)
	return err
}

// MarshalText writes the number of bytes.
func (s Size) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(s), 10), nil }

// Duration is a time above zero, such as 2s or 500ms.
type Duration time.Duration

// UnmarshalText reads a time.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v <= 0 {
		return fmt.Errorf("time %.80q: want one above zero, such as 2s or 500ms: %w", b, isolation.ErrInvalidArgument)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the time as Go does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
