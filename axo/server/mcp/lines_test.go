package mcp

import (
	"bytes"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	var out, other bytes.Buffer
	l := &Lines{Out: &out, Other: &other}
	good := `{"jsonrpc":"2.0","id":1,"result":{}}` + "\n" + `[{"jsonrpc":"2.0","method":"x"}]` + "\n"
	bad := "Listening on port 80\n{}\n[]\n{\"jsonrpc\":\"1.0\"}\n"
	for _, b := range []byte(good + "\n" + bad) {
		if n, err := l.Write([]byte{b}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if out.String() != good || other.String() != bad {
		t.Errorf("out %q, other %q", out.String(), other.String())
	}
	out.Reset()
	other.Reset()
	long := `{"jsonrpc":"2.0","x":"` + strings.Repeat("x", maxLine) + "\"}\n"
	if _, err := l.Write([]byte(long + good)); err != nil || out.String() != good || strings.Count(other.String(), "\n") != 1 {
		t.Errorf("after a long line: %q %q %v", out.String(), other.String(), err)
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("{\"jsonrpc\":\"2.0\"}\nnoise\n[{\"jsonrpc\":\"2.0\"}]\n"), 5)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		cut = min(max(cut, 0), len(b))
		var whole, wholeOther, parts, partsOther bytes.Buffer
		l := &Lines{Out: &whole, Other: &wholeOther}
		_, _ = l.Write(b)
		l = &Lines{Out: &parts, Other: &partsOther}
		_, _ = l.Write(b[:cut])
		_, _ = l.Write(b[cut:])
		if !bytes.Equal(whole.Bytes(), parts.Bytes()) || !bytes.Equal(wholeOther.Bytes(), partsOther.Bytes()) {
			t.Error("it depends on how it is cut")
		}
		for line := range bytes.Lines(whole.Bytes()) {
			if !message(line) {
				t.Errorf("%q is passed on", line)
			}
		}
	})
}
