package guest

// hold is the end of an output: the last bytes that were written, up to
// holdBytes of them. Positions are offsets from the start of the output.
type hold struct {
	buf       []byte // a ring; its length is a power of two
	base, end uint64
}

// holdBytes is what is kept of an output, and how much may be on its way
// without an acknowledgement: the credit of a stream. So what the host may ask
// for again is always there.
const holdBytes = 128 << 10

// append adds b, which is not longer than holdBytes, and drops what is too old.
func (h *hold) append(b []byte) {
	need := min(h.end-h.base+uint64(len(b)), holdBytes)
	if uint64(len(h.buf)) < need {
		size := uint64(4 << 10)
		for size < need {
			size *= 2
		}
		grown := make([]byte, size)
		for at := h.base; at < h.end; {
			part := h.at(at, h.end)
			copy(grown[at&(size-1):], part)
			// What is one piece here may be two there.
			n := min(uint64(len(part)), size-at&(size-1))
			at += n
		}
		h.buf = grown
	}
	for len(b) > 0 {
		n := copy(h.buf[h.end&uint64(len(h.buf)-1):], b)
		h.end += uint64(n)
		b = b[n:]
	}
	if h.end-h.base > holdBytes {
		h.base = h.end - holdBytes
	}
}

// at returns what is held from one offset on, before another: all of it up to
// the end of the ring.
func (h *hold) at(from, to uint64) []byte {
	if from >= to {
		return nil
	}
	i := from & uint64(len(h.buf)-1)
	return h.buf[i:min(uint64(len(h.buf)), i+to-from)]
}
