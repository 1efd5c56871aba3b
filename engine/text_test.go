package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

type failing struct{ n int }

func (f *failing) Write(b []byte) (int, error) {
	f.n++
	return 0, errors.New("gone")
}

func TestCaptureKeepsHeadAndTail(t *testing.T) {
	live := &failing{}
	c := capture{head: 4, tail: 3, live: live}
	for _, s := range []string{"ab", "cdef", "", "ghijklmnop"} {
		if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	got := c.text()
	if string(got.Head) != "abcd" || string(got.Tail) != "nop" || got.Omitted != 9 || live.n != 1 {
		t.Errorf("%+v, %d live writes", got, live.n)
	}
	if s := got.String(); !strings.Contains(s, "9 bytes left out") {
		t.Errorf("%q", s)
	}
}

func TestTextThroughJSON(t *testing.T) {
	for _, want := range []string{"", "text \u00e9", "\xff\x00"} {
		b, err := json.Marshal(Text{Head: []byte(want)})
		if err != nil {
			t.Fatal(err)
		}
		var got Text
		if err := json.Unmarshal(b, &got); err != nil || got.String() != want {
			t.Errorf("%q became %q, %v", want, got, err)
		}
	}
	if err := json.Unmarshal([]byte("1"), new(Text)); err == nil {
		t.Error("a number is no text")
	}
}

// FuzzCapture compares with keeping everything.
func FuzzCapture(f *testing.F) {
	f.Add([]byte("hello world"), uint8(3), uint8(4), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, head, tail, step uint8) {
		c := capture{head: int64(head), tail: int64(tail)}
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(step)+1)
			c.Write(rest[:n])
			rest = rest[n:]
		}
		got := c.text()
		h := min(len(data), int(head))
		tl := min(len(data)-h, int(tail))
		if !bytes.Equal(got.Head, data[:h]) || !bytes.Equal(got.Tail, data[len(data)-tl:]) || got.Omitted != int64(len(data)-h-tl) {
			t.Fatalf("%q with %d+%d in steps of %d: %+v", data, head, tail, step, got)
		}
	})
}

func TestTextJSONChangesNoByte(t *testing.T) {
	for in, want := range map[string]string{"a\n": `"a\n"`, "\xff\x00": `{"base64":"/wA="}`} {
		b, err := json.Marshal(Text{Head: []byte(in)})
		if err != nil || string(b) != want {
			t.Errorf("%q: %s %v", in, b, err)
		}
	}
}
