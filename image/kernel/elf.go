package kernel

import (
	"bytes"
	"encoding/binary"
	"io"
)

const (
	elfRel  = 1
	elfExec = 2
	elfDyn  = 3
)

// elfFile is the frame of a 64-bit little-endian ELF file for x86-64 (elf(5)).
type elfFile struct {
	r        io.ReaderAt
	size     int64
	kind     int
	shoff    int64
	shnum    int
	shstrndx int
	phoff    int64
	phnum    int
}

func readELF(r io.ReaderAt, size int64) (*elfFile, error) {
	var h [64]byte
	if _, err := r.ReadAt(h[:], 0); err != nil || string(h[:4]) != "\x7fELF" {
		return nil, refuse("no ELF file")
	}
	le := binary.LittleEndian
	if h[4] != 2 || h[5] != 1 || le.Uint16(h[18:]) != 62 {
		return nil, refuse("an ELF file for another machine than x86-64")
	}
	f := &elfFile{
		r: r, size: size, kind: int(le.Uint16(h[16:])),
		phoff: int64(le.Uint64(h[32:])), phnum: int(le.Uint16(h[56:])),
		shoff: int64(le.Uint64(h[40:])), shnum: int(le.Uint16(h[60:])), shstrndx: int(le.Uint16(h[62:])),
	}
	if le.Uint16(h[54:]) != 56 && f.phnum > 0 || le.Uint16(h[58:]) != 64 && f.shnum > 0 {
		return nil, refuse("an ELF file with headers of another size")
	}
	return f, nil
}

// part reads n bytes at an offset, if the file has them and they are not more
// than limit.
func (f *elfFile) part(at, n, limit int64) ([]byte, error) {
	if at < 0 || n < 0 || n > limit || at > f.size || n > f.size-at {
		return nil, refuse("a damaged ELF file")
	}
	b := make([]byte, n)
	if _, err := f.r.ReadAt(b, at); err != nil {
		return nil, err
	}
	return b, nil
}

// section returns the content of a section, nil if there is none.
func (f *elfFile) section(name string, limit int64) ([]byte, error) {
	if f.shnum == 0 || f.shstrndx >= f.shnum {
		return nil, nil
	}
	table, err := f.part(f.shoff, int64(f.shnum)*64, 64<<16)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	span := func(i int) (at, n int64) {
		return int64(le.Uint64(table[i*64+24:])), int64(le.Uint64(table[i*64+32:]))
	}
	at, n := span(f.shstrndx)
	names, err := f.part(at, n, 16<<20)
	if err != nil {
		return nil, err
	}
	for i := range f.shnum {
		off := int(le.Uint32(table[i*64:]))
		if off < len(names) && bytes.HasPrefix(names[off:], append([]byte(name), 0)) {
			at, n := span(i)
			return f.part(at, n, limit)
		}
	}
	return nil, nil
}

// hasPVH reports whether a kernel has the entry by which a virtual machine
// monitor starts it uncompressed: the note of type 18 of the owner "Xen"
// (include/xen/interface/elfnote.h).
func (f *elfFile) hasPVH() (bool, error) {
	table, err := f.part(f.phoff, int64(f.phnum)*56, 56<<16)
	if err != nil {
		return false, err
	}
	le := binary.LittleEndian
	for i := range f.phnum {
		p := table[i*56:]
		if le.Uint32(p) != 4 { // PT_NOTE
			continue
		}
		notes, err := f.part(int64(le.Uint64(p[8:])), int64(le.Uint64(p[32:])), 1<<20)
		if err != nil {
			return false, err
		}
		for len(notes) >= 12 {
			name, desc := int64(le.Uint32(notes)), int64(le.Uint32(notes[4:]))
			next := 12 + (name+3)&^3 + (desc+3)&^3
			if next > int64(len(notes)) {
				break
			}
			if le.Uint32(notes[8:]) == 18 && string(notes[12:12+name]) == "Xen\x00" {
				return true, nil
			}
			notes = notes[next:]
		}
	}
	return false, nil
}
