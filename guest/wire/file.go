package wire

import (
	"encoding/binary"
	"fmt"
)

// FileOp is an operation on a file of the sandbox.
type FileOp uint64

// The operations. What they carry beyond the request goes as the data of
// their stream, with its credit; the answer is FILE, with what was found, or
// FAIL.
const (
	FileStat   FileOp = 1 // the answer has the one entry
	FileList   FileOp = 2 // STDOUT carries the entries
	FileRead   FileOp = 3 // STDOUT carries the content
	FileWrite  FileOp = 4 // STDIN carries the content, to STDIN_EOF
	FileMkdir  FileOp = 5
	FileRename FileOp = 6 // Name becomes Target
	FileRemove FileOp = 7
	FileWatch  FileOp = 8 // the answer says that it has begun; then STDOUT carries events
	FileSpace  FileOp = 9 // the answer has the size of the file system, and what is free
)

// FileMessage asks for an operation, on a new stream.
type FileMessage struct {
	Op      FileOp
	Name    string // absolute path in the sandbox
	Target  string
	Mode    uint64 // permission bits for write and mkdir
	Parents bool   // mkdir: what is missing above too, and one that is there is well
	All     bool   // remove, watch: all below too
	NoLink  bool   // stat: of a link itself
	User    string // as EXEC's; empty: the sandbox's default
}

// Append appends the body.
func (m *FileMessage) Append(b []byte) []byte {
	b = appendUint(b, 1, uint64(m.Op))
	b = appendText(b, 2, m.Name)
	b = appendText(b, 3, m.Target)
	b = appendUint(b, 4, m.Mode)
	b = appendUint(b, 5, bit(m.Parents))
	b = appendUint(b, 6, bit(m.All))
	b = appendUint(b, 7, bit(m.NoLink))
	return appendText(b, 8, m.User)
}

// Parse reads the body.
func (m *FileMessage) Parse(body []byte) error {
	*m = FileMessage{}
	err := fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.uint((*uint64)(&m.Op))
		case 2:
			return v.text(&m.Name)
		case 3:
			return v.text(&m.Target)
		case 4:
			return v.uint(&m.Mode)
		case 5:
			return v.flag(&m.Parents)
		case 6:
			return v.flag(&m.All)
		case 7:
			return v.flag(&m.NoLink)
		case 8:
			return v.text(&m.User)
		}
		return unknown("FILE", tag)
	})
	if err == nil && (m.Op < FileStat || m.Op > FileSpace) {
		err = fmt.Errorf("%w: FILE operation %d", ErrProtocol, m.Op)
	}
	return err
}

// FileEntry is what is known of a file. As an answer it is the body of FILE, and
// empty where nothing is to be told; in STDOUT each goes behind its length, a
// u32.
type FileEntry struct {
	Name    string // the last element
	Mode    uint64 // st_mode (inode(7))
	Size    uint64 // bytes
	Time    uint64 // of the last change of the content, ns since 1970
	UID     uint64
	GID     uint64
	Link    string // target of a symbolic link
	Dropped uint64 // list: entries beyond the bound
	Total   uint64 // space: bytes of the file system
	Free    uint64 // space: of them, what its user may still take
}

func (m *FileEntry) numbers() [11]*uint64 {
	return [11]*uint64{2: &m.Mode, 3: &m.Size, 4: &m.Time, 5: &m.UID, 6: &m.GID, 8: &m.Dropped, 9: &m.Total, 10: &m.Free}
}

// Append appends the body.
func (m *FileEntry) Append(b []byte) []byte {
	b = appendText(b, 1, m.Name)
	for tag, n := range m.numbers() {
		if n != nil {
			b = appendUint(b, byte(tag), *n)
		}
	}
	return appendText(b, 7, m.Link)
}

// Parse reads the body.
func (m *FileEntry) Parse(body []byte) error {
	*m = FileEntry{}
	numbers := m.numbers()
	return fields(body, func(tag byte, v value) error {
		switch {
		case tag == 1:
			return v.text(&m.Name)
		case tag == 7:
			return v.text(&m.Link)
		case int(tag) < len(numbers) && numbers[tag] != nil:
			return v.uint(numbers[tag])
		}
		return unknown("FILE entry", tag)
	})
}

// FileEvents are what a watch tells; more than one bit may be set.
const (
	EventCreate   = 1 << iota // a file came to be, or was moved here
	EventWrite                // content changed
	EventRemove               // it is gone, or was moved away
	EventMeta                 // mode, owner or times changed
	EventOverflow             // more happened than is told
)

// FileEvent is a change. In STDOUT each goes behind its length, a u32.
type FileEvent struct {
	Name  string // absolute path; empty: of an overflow
	Event uint64
}

// Append appends the body.
func (m *FileEvent) Append(b []byte) []byte {
	return appendUint(appendText(b, 1, m.Name), 2, m.Event)
}

// Parse reads the body.
func (m *FileEvent) Parse(body []byte) error {
	*m = FileEvent{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.text(&m.Name)
		case 2:
			return v.uint(&m.Event)
		}
		return unknown("FILE event", tag)
	})
}

// MaxRecord bounds one entry or event in STDOUT.
const MaxRecord = 16 << 10

// AppendRecord appends a record behind its length.
func AppendRecord(b, record []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(record))), record...)
}

// CutRecord returns the record at the front of b and what follows it; ok is
// false when it is not all there yet.
func CutRecord(b []byte) (record, rest []byte, ok bool, err error) {
	if len(b) < 4 {
		return nil, b, false, nil
	}
	n := binary.BigEndian.Uint32(b)
	if n > MaxRecord {
		return nil, b, false, fmt.Errorf("%w: record of %d bytes", ErrProtocol, n)
	}
	if uint32(len(b)-4) < n {
		return nil, b, false, nil
	}
	return b[4 : 4+n], b[4+n:], true, nil
}
