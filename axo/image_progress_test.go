package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/axocoatl/isolation/image"
)

const someBlob = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestProgress: lines where there is no terminal, bars on one, and nothing that a
// registry says reaches a terminal as it is.
func TestProgress(t *testing.T) {
	list := []image.Event{
		{Stage: image.StageResolved, Digest: someBlob, Total: 3 << 20},
		{Stage: image.StageDownload, Digest: someBlob, Done: 1 << 20, Total: 2 << 20},
		{Stage: image.StageRetry, Digest: someBlob, Done: 1 << 20, Total: 2 << 20, Message: "evil\x1b[2J\r\u009b31mtext"},
		{Stage: image.StageDownloaded, Digest: someBlob, Done: 2 << 20, Total: 2 << 20},
		{Stage: image.StageCopied, Digest: "layer\x1b]0;title\a.tar", Done: 5, Total: 5},
		{Stage: image.StageUnpacked, Digest: someBlob},
	}
	var lines bytes.Buffer
	p := newProgress(&lines, false)
	for _, e := range list {
		p.event(e)
	}
	p.done()
	want := "image " + someBlob + ", 3.0 MiB\n" +
		"0123456789ab: interrupted at 1.0 MiB of 2.0 MiB, trying again: evil?[2J??31mtext\n" +
		"0123456789ab: downloaded 2.0 MiB\nlayer?]0;title?.tar: copied 5 B\n0123456789ab: unpacked\n"
	if got := lines.String(); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	var screen bytes.Buffer
	p = &progress{w: &screen, bars: true, width: 80, height: 24}
	for _, e := range list {
		p.event(e)
	}
	p.done()
	got := screen.String()
	for _, s := range []string{"[##########..........] 1.0 MiB of 2.0 MiB", "trying again: evil?[2J", "layer?]0;title?.tar copied 5 B", "\x1b[2A", "0123456789ab unpacked"} {
		if !strings.Contains(got, s) {
			t.Errorf("no %q in %q", s, got)
		}
	}
	for line := range strings.SplitSeq(got, "\n") {
		if n := len([]rune(strings.TrimPrefix(strings.TrimPrefix(line, "\x1b[1A"), "\x1b[2A"))); n > 80+len("\r\x1b[K") && !strings.HasPrefix(line, "image ") {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	var quiet bytes.Buffer
	if newProgress(&quiet, true).event(list[0]); quiet.Len() > 0 {
		t.Errorf("%q", quiet.String())
	}
}

func TestErrorText(t *testing.T) {
	if got := errorText(errors.New("one\x1b[2J\ntwo\x00")); got != "one?[2J\ntwo?" {
		t.Errorf("%q", got)
	}
}
