package wire

import (
	"encoding/binary"
	"fmt"
)

// SpawnMessage starts a program in a container on the frame's stream, with
// three descriptors that come with the frame (SCM_RIGHTS, unix(7)): its
// standard input, output and error. The host reads and counts what it writes;
// no data frames follow.
type SpawnMessage struct {
	Args    []string
	Env     []string
	Cwd     string // empty: the user's home, or "/"
	User    string // name or uid[:gid]; empty: the sandbox's default
	Rlimits []Rlimit
	Tty     bool // the guest makes a terminal and copies between it and the descriptors
	Rows    uint64
	Cols    uint64
}

// Rlimit is a resource limit by its Linux number (setrlimit(2)).
type Rlimit struct {
	Resource uint32
	Cur, Max uint64
}

const rlimitSize = 4 + 8 + 8

// Append appends the body.
func (m *SpawnMessage) Append(b []byte) []byte {
	for _, v := range m.Args {
		b = appendBytes(b, 1, v)
	}
	for _, v := range m.Env {
		b = appendBytes(b, 2, v)
	}
	b = appendText(b, 3, m.Cwd)
	b = appendText(b, 4, m.User)
	for _, l := range m.Rlimits {
		b = appendBytes(b, 5, l.append(nil))
	}
	b = appendUint(b, 6, bit(m.Tty))
	b = appendUint(b, 7, m.Rows)
	return appendUint(b, 8, m.Cols)
}

// Parse reads the body.
func (m *SpawnMessage) Parse(body []byte) error {
	*m = SpawnMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.list(&m.Args, maxList)
		case 2:
			return v.list(&m.Env, maxList)
		case 3:
			return v.text(&m.Cwd)
		case 4:
			return v.text(&m.User)
		case 5:
			return v.rlimit(&m.Rlimits)
		case 6:
			return v.flag(&m.Tty)
		case 7:
			return v.uint(&m.Rows)
		case 8:
			return v.uint(&m.Cols)
		}
		return unknown("SPAWN", tag)
	})
}

const maxRlimits = 32

func (l Rlimit) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, l.Resource)
	b = binary.BigEndian.AppendUint64(b, l.Cur)
	return binary.BigEndian.AppendUint64(b, l.Max)
}

func (v value) rlimit(dst *[]Rlimit) error {
	if len(v) != rlimitSize || len(*dst) == maxRlimits {
		return fmt.Errorf("%w: resource limit of %d bytes, after %d others", ErrProtocol, len(v), len(*dst))
	}
	*dst = append(*dst, Rlimit{binary.BigEndian.Uint32(v), binary.BigEndian.Uint64(v[4:]), binary.BigEndian.Uint64(v[12:])})
	return nil
}

// SpawnedMessage says that a program runs. On a unix socket a pidfd of it comes
// with the frame. As the answer to EXEC and ATTACH it tells what can be sent, and
// where output begins.
type SpawnedMessage struct {
	PID         uint64 // in the guest's pid namespace; 0: not known
	Stdin       uint64 // bytes of input that came by now
	StdinCredit uint64 // bytes that may be sent
	StdinEnd    bool   // no input is taken any more
	Stdout      uint64 // offsets of what is sent first
	Stderr      uint64
}

// Append appends the body.
func (m *SpawnedMessage) Append(b []byte) []byte {
	b = appendUint(appendUint(appendUint(b, 1, m.PID), 2, m.Stdin), 3, m.StdinCredit)
	return appendUint(appendUint(appendUint(b, 4, bit(m.StdinEnd)), 5, m.Stdout), 6, m.Stderr)
}

// Parse reads the body.
func (m *SpawnedMessage) Parse(body []byte) error {
	*m = SpawnedMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.uint(&m.PID)
		case 2:
			return v.uint(&m.Stdin)
		case 3:
			return v.uint(&m.StdinCredit)
		case 4:
			return v.flag(&m.StdinEnd)
		case 5:
			return v.uint(&m.Stdout)
		case 6:
			return v.uint(&m.Stderr)
		}
		return unknown("SPAWNED", tag)
	})
}

// ResizeMessage sets the size of a terminal, in character cells.
type ResizeMessage struct{ Rows, Cols uint64 }

// Append appends the body.
func (m *ResizeMessage) Append(b []byte) []byte {
	return appendUint(appendUint(b, 1, m.Rows), 2, m.Cols)
}

// Parse reads the body.
func (m *ResizeMessage) Parse(body []byte) error {
	*m = ResizeMessage{}
	return fields(body, func(tag byte, v value) error {
		switch tag {
		case 1:
			return v.uint(&m.Rows)
		case 2:
			return v.uint(&m.Cols)
		}
		return unknown("RESIZE", tag)
	})
}
