// Package wire is the protocol between the host and what runs inside a
// sandbox: the guest of a container or a microVM, or a WASM worker. It is the
// only package that the two sides share. PROTOCOL.md beside this file is the
// specification; testdata/vectors.json binds every implementation to it.
//
// A connection carries frames. A reader treats every byte as hostile: lengths
// are checked before anything is allocated, and a malformed frame ends the
// connection.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Version is the version of the protocol that HELLO carries.
const Version = 1

const (
	// HeaderSize is the length of a frame's header in bytes.
	HeaderSize = 9
	// MaxBody is the largest body of a frame in bytes.
	MaxBody = 1 << 20
	// MaxData is the largest piece of stream data that a sender should put in
	// one frame: large enough to amortise the header, small enough to let
	// other streams through.
	MaxData = 64 << 10
	// InitialWindow is the credit in bytes that each direction of a stream
	// has at its start; see WINDOW in PROTOCOL.md.
	InitialWindow = 128 << 10
)

// Type is the type of a frame.
type Type uint8

// The frame types. Numbers are never reused.
const (
	Hello    Type = 1  // either side: version and role
	Sync     Type = 2  // host: entropy, clock, names after a restore
	Exec     Type = 3  // host: start a process on this stream
	Attach   Type = 4  // host: resume the output of a process
	Stdin    Type = 5  // host: input
	StdinEOF Type = 6  // host: no more input
	Stdout   Type = 7  // sandbox: output
	Stderr   Type = 8  // sandbox: output
	Exit     Type = 9  // sandbox: the process ended
	Kill     Type = 10 // host: signal a process
	Resize   Type = 11 // host: terminal size
	Ping     Type = 12 // either side
	Pong     Type = 13 // the answer, same body
	Window   Type = 14 // either side: more credit
	File     Type = 15 // either side: file operation
	Mount    Type = 16 // host: mount in the sandbox
	Power    Type = 17 // host: end the sandbox
	Load     Type = 18 // host: load an artefact (WASM worker)
	Loaded   Type = 19 // worker: it is ready
	Compile  Type = 20 // host: compile a module (compile worker)
	Compiled Type = 21 // worker: the artefact
	Fail     Type = 22 // sandbox: a request could not be done
	Wait     Type = 23 // worker: the process is blocked, its slot is free
	Run      Type = 24 // worker: it could go on; host: it may
	Spawn    Type = 25 // host: start a program with passed descriptors
	Spawned  Type = 26 // guest: it runs
	Prepare  Type = 27 // host: start an interpreter ahead
	Prepared Type = 28 // guest: it is ready
	Usage    Type = 29 // host: what has the process used; guest: this
	Port     Type = 30 // host: a connection of the sandbox's network; guest: it is there
)

const maxType = Port

var typeNames = [...]string{
	Hello: "HELLO", Sync: "SYNC", Exec: "EXEC", Attach: "ATTACH", Stdin: "STDIN", StdinEOF: "STDIN_EOF",
	Stdout: "STDOUT", Stderr: "STDERR", Exit: "EXIT", Kill: "KILL", Resize: "RESIZE", Ping: "PING", Pong: "PONG",
	Window: "WINDOW", File: "FILE", Mount: "MOUNT", Power: "POWER", Load: "LOAD", Loaded: "LOADED",
	Compile: "COMPILE", Compiled: "COMPILED", Fail: "FAIL", Wait: "WAIT", Run: "RUN",
	Spawn: "SPAWN", Spawned: "SPAWNED", Prepare: "PREPARE", Prepared: "PREPARED", Usage: "USAGE", Port: "PORT",
}

func (t Type) String() string {
	if t >= Hello && t <= maxType {
		return typeNames[t]
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// Frame is one message. Stream is 0 for what belongs to the connection.
type Frame struct {
	Type   Type
	Stream uint32
	Body   []byte
}

// ErrProtocol is what every violation of the protocol wraps. The connection
// must be given up.
var ErrProtocol = errors.New("protocol violation")

// Append appends the encoding of a frame to b. The body must have at most
// MaxBody bytes; a longer one is a mistake of the caller and panics.
func Append(b []byte, t Type, stream uint32, body []byte) []byte {
	if len(body) > MaxBody {
		panic(fmt.Sprintf("wire: %v body of %d bytes", t, len(body)))
	}
	b = AppendHeader(b, t, stream, len(body))
	return append(b, body...)
}

// AppendHeader appends the header of a frame with a body of n bytes.
func AppendHeader(b []byte, t Type, stream uint32, n int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, byte(t))
	return binary.BigEndian.AppendUint32(b, stream)
}

// Parse reads one frame from the front of b. It returns the frame, whose body
// aliases b, and its length in b; n is 0 when b holds no whole frame yet.
func Parse(b []byte) (f Frame, n int, err error) {
	if len(b) < HeaderSize {
		return Frame{}, 0, nil
	}
	size := binary.BigEndian.Uint32(b)
	t := Type(b[4])
	if size > MaxBody {
		return Frame{}, 0, fmt.Errorf("%w: body of %d bytes, at most %d are taken", ErrProtocol, size, MaxBody)
	}
	if t < Hello || t > maxType {
		return Frame{}, 0, fmt.Errorf("%w: frame type %d", ErrProtocol, t)
	}
	if uint32(len(b)-HeaderSize) < size {
		return Frame{}, 0, nil
	}
	n = HeaderSize + int(size)
	return Frame{t, binary.BigEndian.Uint32(b[5:]), b[HeaderSize:n:n]}, n, nil
}

// Reader reads frames. It is not safe for concurrent use.
type Reader struct {
	r          io.Reader
	buf        []byte
	start, end int
}

// NewReader returns a Reader with a buffer that grows to the largest frame
// that comes.
func NewReader(r io.Reader) *Reader { return &Reader{r: r, buf: make([]byte, 32<<10)} }

// Buffered reports whether a whole frame can be returned without reading.
func (r *Reader) Buffered() bool {
	_, n, err := Parse(r.buf[r.start:r.end])
	return n > 0 || err != nil
}

// Next returns the next frame. Its body is valid until the next call. The end
// of the stream between two frames is io.EOF, inside one io.ErrUnexpectedEOF.
func (r *Reader) Next() (Frame, error) {
	for {
		f, n, err := Parse(r.buf[r.start:r.end])
		if err != nil {
			return Frame{}, err
		}
		if n > 0 {
			r.start += n
			return f, nil
		}
		if err := r.fill(); err != nil {
			if err == io.EOF && r.end > r.start {
				err = io.ErrUnexpectedEOF
			}
			return Frame{}, err
		}
	}
}

// fill reads more, after making room for at least one byte. The buffer grows
// only once a checked header says that the frame needs it.
func (r *Reader) fill() error {
	if r.start == r.end {
		r.start, r.end = 0, 0
	}
	if have := r.end - r.start; have >= HeaderSize {
		need := HeaderSize + int(binary.BigEndian.Uint32(r.buf[r.start:]))
		if need > len(r.buf) {
			grown := make([]byte, need)
			r.end = copy(grown, r.buf[r.start:r.end])
			r.start, r.buf = 0, grown
		}
	}
	if r.end == len(r.buf) || len(r.buf)-r.start < HeaderSize {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	for range 100 {
		n, err := r.r.Read(r.buf[r.end:])
		r.end += n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}
