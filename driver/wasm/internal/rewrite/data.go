package rewrite

// segment is a data segment (section 5.5.14).
type segment struct {
	form   uint32
	active bool
	fixed  bool   // active in memory 0 at a constant offset
	offset uint32 // if fixed
	expr   []byte // offset expression, if active
	bytes  []byte
}

func (m *module) segment(r *reader) segment {
	s := segment{form: r.u32()}
	switch s.form {
	case 0:
		s.active = true
	case 1:
	case 2:
		if r.u32() != 0 {
			r.fail(Unsupported, "module uses more than one memory")
		}
		s.active = true
	default:
		r.fail(Malformed, "data segment of form %d", s.form)
	}
	if s.active {
		begin := r.pos
		if r.left() > 0 && r.b[r.pos] == opI32Const {
			r.byte()
			s.offset = uint32(r.s32())
			s.fixed = r.byte() == opEnd
			r.pos = begin
		}
		skipExpr(r)
		s.expr = r.b[begin:r.pos]
	}
	s.bytes = r.bytes(r.u32())
	return s
}

// maxGap is the largest run of zeros in bytes that joins two segments.
const maxGap = 1024

// maxImage bounds a memory image in bytes.
const maxImage = 64 << 20

// simple reports whether all segments are active at constant offsets within
// the memory's minimum, and no instruction names one: then only what memory
// holds at the start matters, not how it got there.
func (m *module) simple() bool {
	if m.dataRefs || m.importsMemory || !m.info.HasMemory || len(m.data) == 0 {
		return false
	}
	size := uint64(m.info.MinPages) << 16
	for _, s := range m.data {
		if !s.fixed || uint64(s.offset)+uint64(len(s.bytes)) > size {
			return false
		}
	}
	return true
}

// image returns the initial memory from the first to the last byte that a
// segment sets.
func (m *module) image() (image []byte, base uint32) {
	lo, hi := uint64(1<<32), uint64(0)
	for _, s := range m.data {
		if len(s.bytes) > 0 {
			lo, hi = min(lo, uint64(s.offset)), max(hi, uint64(s.offset)+uint64(len(s.bytes)))
		}
	}
	if hi <= lo || hi-lo > maxImage {
		return nil, 0
	}
	image = make([]byte, hi-lo)
	for _, s := range m.data { // in order: a later segment overwrites
		copy(image[uint64(s.offset)-lo:], s.bytes)
	}
	return image, uint32(lo)
}

// merged returns the image as few segments: zeros of more than maxGap are left
// out.
func merged(image []byte, base uint32) []segment {
	var out []segment
	for i := 0; i < len(image); {
		if image[i] == 0 {
			i++
			continue
		}
		end, zeros := i, 0
		for j := i; j < len(image) && zeros <= maxGap; j++ {
			if image[j] == 0 {
				zeros++
				continue
			}
			zeros, end = 0, j+1
		}
		offset := base + uint32(i)
		expr := append(appendS64([]byte{opI32Const}, int64(int32(offset))), opEnd)
		out = append(out, segment{active: true, fixed: true, offset: offset, expr: expr, bytes: image[i:end]})
		i = end
	}
	return out
}

func dataSection(segments []segment) []byte {
	n := 0
	for _, s := range segments {
		n += len(s.bytes) + len(s.expr) + 6
	}
	out := appendU32(make([]byte, 0, n+5), uint32(len(segments)))
	for _, s := range segments {
		form := s.form
		if form == 2 { // memory 0, written out
			form = 0
		}
		out = append(appendU32(out, form), s.expr...)
		out = append(appendU32(out, uint32(len(s.bytes))), s.bytes...)
	}
	return out
}
