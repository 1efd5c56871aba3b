package engine

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"unicode/utf8"
)

// Text is what was kept of a stream: its beginning and its end.
type Text struct {
	Head, Tail []byte
	Omitted    int64 // bytes between the two that were not kept
}

// Bytes returns what was kept, with a line between head and tail that says how
// much is missing, if any is.
func (t Text) Bytes() []byte {
	if t.Omitted == 0 {
		return append(append([]byte(nil), t.Head...), t.Tail...)
	}
	mark := fmt.Sprintf("\n... %d bytes left out ...\n", t.Omitted)
	return append(append(append([]byte(nil), t.Head...), mark...), t.Tail...)
}

// String returns Bytes as a string.
func (t Text) String() string { return string(t.Bytes()) }

// MarshalJSON writes text as a string, and bytes that are not valid UTF-8 as
// {"base64": "..."}: JSON would silently change them.
func (t Text) MarshalJSON() ([]byte, error) {
	b := t.Bytes()
	if utf8.Valid(b) {
		return json.Marshal(string(b))
	}
	return json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString(b)})
}

// UnmarshalJSON reads what MarshalJSON wrote, into Head: how much is missing, and
// where, is told by it for people only.
func (t *Text) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err == nil {
		*t = Text{Head: []byte(text)}
		return nil
	}
	var other struct {
		Base64 []byte `json:"base64"`
	}
	if err := json.Unmarshal(b, &other); err != nil {
		return err
	}
	*t = Text{Head: other.Base64}
	return nil
}

// capture keeps the head and tail of a stream, passes it on, and spills it to a
// file. It never fails: a live writer that fails, or a full disk, does not stop
// the program, and loses nothing of the rest.
type capture struct {
	head, tail int64
	live       io.Writer
	liveErr    error
	file       *os.File
	fileLeft   int64

	mu    sync.Mutex
	kept  Text   // guarded by mu
	ring  []byte // guarded by mu; the tail, from next on and then from 0
	next  int    // guarded by mu
	total int64  // guarded by mu
}

func (c *capture) Write(b []byte) (int, error) {
	if c.live != nil && c.liveErr == nil {
		_, c.liveErr = c.live.Write(b)
	}
	if c.file != nil && c.fileLeft > 0 {
		n, err := c.file.Write(b[:min(int64(len(b)), c.fileLeft)])
		c.fileLeft -= int64(n)
		if err != nil {
			c.fileLeft = 0
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepLocked(b)
	return len(b), nil
}

func (c *capture) keepLocked(b []byte) {
	c.total += int64(len(b))
	if room := c.head - int64(len(c.kept.Head)); room > 0 {
		n := min(room, int64(len(b)))
		c.kept.Head = append(c.kept.Head, b[:n]...)
		b = b[n:]
	}
	if int64(len(b)) > c.tail {
		b = b[int64(len(b))-c.tail:]
	}
	if room := c.tail - int64(len(c.ring)); room > 0 {
		n := min(room, int64(len(b)))
		c.ring = append(c.ring, b[:n]...)
		b = b[n:]
	}
	for len(b) > 0 {
		n := copy(c.ring[c.next:], b)
		c.next = (c.next + n) % len(c.ring)
		b = b[n:]
	}
}

// bytes returns how much was written so far.
func (c *capture) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total
}

// text returns what was kept so far.
func (c *capture) text() Text {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.kept
	t.Tail = append(append([]byte(nil), c.ring[c.next:]...), c.ring[:c.next]...)
	t.Omitted = c.total - int64(len(t.Head)) - int64(len(t.Tail))
	return t
}
