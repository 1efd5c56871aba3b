package isolation

import (
	"errors"
	"strings"
	"testing"
)

func TestValidateID(t *testing.T) {
	for _, id := range []string{"a", "0", "Z9", "job-1", "a.b_c-d", strings.Repeat("x", 64)} {
		if err := ValidateID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{
		"", ".", "..", "-a", "_a", ".a", "a/b", "/", "a b", "a\x00", "a\n", "é", "a\xff", "a:b", strings.Repeat("x", 65),
		strings.Repeat("x", 1<<20),
	} {
		err := ValidateID(id)
		if !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%.80q: %v, want InvalidArgument", id, err)
		} else if len(err.Error()) > 1000 {
			t.Errorf("%.80q: the message has %d bytes", id, len(err.Error()))
		}
	}
}
