package guest

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func (h *hold) from(at uint64) []byte {
	var out []byte
	for at < h.end {
		b := h.at(at, h.end)
		out = append(out, b...)
		at += uint64(len(b))
	}
	return out
}

// TestHold compares the ring with a slice that keeps everything.
func TestHold(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var h hold
		var all []byte
		for range r.IntN(60) {
			b := make([]byte, r.IntN(1<<r.IntN(18)))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			b = b[:min(len(b), holdBytes)]
			h.append(b)
			all = append(all, b...)
			if h.end != uint64(len(all)) || h.end-h.base != uint64(min(len(all), holdBytes)) {
				t.Fatalf("%d bytes were written, %d to %d are held", len(all), h.base, h.end)
			}
			at := h.base + r.Uint64N(h.end-h.base+1)
			if got := h.from(at); !bytes.Equal(got, all[at:]) {
				t.Fatalf("from %d of %d: %d bytes, want %d, or others", at, len(all), len(got), len(all)-int(at))
			}
			if len(h.buf) > holdBytes {
				t.Fatalf("%d bytes are taken", len(h.buf))
			}
		}
	}
}
