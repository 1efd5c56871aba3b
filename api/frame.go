package api

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// StreamType is the content type of a stream of frames: each is one byte of kind,
// four of length, big-endian, and so many of payload.
const StreamType = "application/vnd.axo.stream"

// FrameKind says what a frame is.
type FrameKind byte

// The kinds. A stream begins with a process or a run and ends with one that has
// ended, or with a problem; one that ends otherwise was cut off.
const (
	FrameStdout  FrameKind = 1 // bytes of output
	FrameStderr  FrameKind = 2
	FrameProcess FrameKind = 3 // JSON of a Process
	FrameProblem FrameKind = 4 // JSON of a Problem
	FrameAlive   FrameKind = 5 // nothing: the server is there
	FrameRun     FrameKind = 6 // JSON of a RunStatus
)

// MaxFrame bounds a payload.
const MaxFrame = 1 << 20

// WriteFrame writes one.
func WriteFrame(w io.Writer, k FrameKind, p []byte) error {
	var h [5]byte
	h[0] = byte(k)
	binary.BigEndian.PutUint32(h[1:], uint32(len(p)))
	if _, err := w.Write(h[:]); err != nil {
		return err
	}
	_, err := w.Write(p)
	return err
}

// WriteJSONFrame writes one of a value.
func WriteJSONFrame(w io.Writer, k FrameKind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteFrame(w, k, b)
}

// ReadFrame reads one, into buf if it fits. io.EOF: the stream was cut off between
// two frames.
func ReadFrame(r io.Reader, buf []byte) (FrameKind, []byte, error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes: at most %d are taken", n, MaxFrame)
	}
	if uint32(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return FrameKind(h[0]), buf, nil
}
