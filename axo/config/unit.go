package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/axocoatl/isolation/axo/internal/quantity"
)

// Size is a number of bytes, in text such as 64M or 1.5GiB.
type Size int64

// UnmarshalText implements encoding.TextUnmarshaler. 0 is a size.
func (s *Size) UnmarshalText(text []byte) error {
	if string(text) == "0" {
		*s = 0
		return nil
	}
	n, err := quantity.ParseSize(string(text))
	*s = Size(n)
	return err
}

// String tells it in the largest unit that it is a multiple of.
func (s Size) String() string {
	n := int64(s)
	for _, u := range []struct {
		shift uint
		name  string
	}{{40, "T"}, {30, "G"}, {20, "M"}, {10, "K"}} {
		if n > 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// Duration is a time, in text such as 10s or 1h30m.
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("time %q: want one such as 10s or 1h30m", text)
	}
	*d = Duration(v)
	return nil
}

// String leaves out what is zero: 1h, not 1h0m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
