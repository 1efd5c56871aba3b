// Package layer is what axo-guest does in a sandbox in which an image is built: it tells
// what has changed in the sandbox's files, and puts files there. It is run by name, as a
// program of the sandbox like any other, and has no right that its user has not.
//
// What it reads and writes is a sequence of records, each a file, a link or a name. It is
// no tar because the guest has no need of one: the other side has, and checks all of it.
package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Type is what a record is about.
type Type byte

// The types.
const (
	Mark    Type = 'm' // MTime: what has a later ctime has changed since the walk began
	Name    Type = 'n' // a file that is there, and has not changed
	File    Type = 'f' // Size bytes of content follow
	Dir     Type = 'd'
	Symlink Type = 'l' // Target is what it says
	Link    Type = 'h' // to the file Target, an earlier record
	FIFO    Type = 'p'
	End     Type = 'e' // all has been told
)

// Record is one. Names are relative to the root, without a slash at either end.
type Record struct {
	Type     Type
	Name     string
	Target   string
	Mode     uint32 // permission bits, with S_ISUID and so on, as stat(2) has them
	UID, GID uint32
	Size     int64
	MTime    int64  // ns
	Cap      []byte // security.capability
}

// Bounds of a record: a header is longer than neither of its names and its attribute.
const (
	MaxName = 4096
	MaxCap  = 64
	fixed   = 1 + 4 + 4 + 4 + 8 + 8 + 2 + 2 + 2
)

// ErrRecord is for bytes that are no record.
var ErrRecord = errors.New("not a record")

// Write writes a record without its content.
func Write(w io.Writer, r Record) error {
	if len(r.Name) > MaxName || len(r.Target) > MaxName || len(r.Cap) > MaxCap || r.Size < 0 {
		return fmt.Errorf("a name of %d bytes, or a size of %d: %w", max(len(r.Name), len(r.Target)), r.Size, ErrRecord)
	}
	b := make([]byte, 0, fixed+len(r.Name)+len(r.Target)+len(r.Cap))
	b = append(b, byte(r.Type))
	for _, n := range []uint32{r.Mode, r.UID, r.GID} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(r.Size))
	b = binary.BigEndian.AppendUint64(b, uint64(r.MTime))
	for _, n := range []int{len(r.Name), len(r.Target), len(r.Cap)} {
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	}
	b = append(append(append(b, r.Name...), r.Target...), r.Cap...)
	_, err := w.Write(b)
	return err
}

// Read reads a record. The content of a file, Size bytes, is the caller's to read.
func Read(r io.Reader) (Record, error) {
	var b [fixed]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Record{}, err
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
	out := Record{Type: Type(b[0]), Mode: u32(1), UID: u32(5), GID: u32(9), Size: int64(binary.BigEndian.Uint64(b[13:])), MTime: int64(binary.BigEndian.Uint64(b[21:]))}
	var n [3]int
	for i := range n {
		n[i] = int(binary.BigEndian.Uint16(b[29+2*i:]))
	}
	switch out.Type {
	case Mark, Name, File, Dir, Symlink, Link, FIFO, End:
	default:
		return Record{}, fmt.Errorf("type %q: %w", b[0], ErrRecord)
	}
	if n[0] > MaxName || n[1] > MaxName || n[2] > MaxCap || out.Size < 0 || out.Size > 0 && out.Type != File {
		return Record{}, fmt.Errorf("lengths %v, size %d: %w", n, out.Size, ErrRecord)
	}
	rest := make([]byte, n[0]+n[1]+n[2])
	if _, err := io.ReadFull(r, rest); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Record{}, err
	}
	out.Name, out.Target = string(rest[:n[0]]), string(rest[n[0]:n[0]+n[1]])
	if n[2] > 0 {
		out.Cap = rest[n[0]+n[1]:]
	}
	return out, nil
}
