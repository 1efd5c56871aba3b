package brand

import (
	"os"
	"testing"
)

// TestNoSandbox: what is no brand is nobody's, and least of all that of the many
// processes that have none.
func TestNoSandbox(t *testing.T) {
	b, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for _, none := range []Brand{0, 1, 12345, execMask, 1 << 61, 1 << 63, 3 << 62} {
		if none.IsValid() || none.SameSandbox(none) || none.SameSandbox(0) || b.SameSandbox(none) || none.SameSandbox(b) {
			t.Errorf("%x has a sandbox", none)
		}
	}
	if Of(os.Getpid()) != 0 || b.SameSandbox(Of(os.Getpid())) || !b.SameSandbox(b.Exec(7)) || !b.Guest().SameSandbox(b) {
		t.Errorf("%x, %x", b, Of(os.Getpid()))
	}
}
