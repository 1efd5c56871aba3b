package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/axocoatl/isolation/image"
)

// progress shows how a pull or an import gets on: a bar for each layer on a
// terminal, a line for each step elsewhere.
type progress struct {
	w             io.Writer
	quiet, bars   bool
	width, height int
	rows          []*progressRow
	drawn         int // lines that are on the screen
}

type progressRow struct {
	digest      string
	stage       image.Stage
	done, total int64
	note        string
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		var err error
		p.width, p.height, err = term.GetSize(int(f.Fd()))
		p.bars = err == nil && p.width >= 40 && p.height >= 4
	}
	return p
}

// event takes an event; the store calls it one at a time.
func (p *progress) event(e image.Event) {
	switch {
	case p.quiet:
	case p.bars:
		p.update(e)
		p.draw()
	default:
		p.line(e)
	}
}

// short names a blob by the first digits of its digest. A file of an archive
// keeps its name.
func short(digest string) string {
	if d, ok := strings.CutPrefix(digest, "sha256:"); ok {
		return d[:min(12, len(d))]
	}
	name := []rune(printable(strings.TrimPrefix(digest, "blobs/sha256/")))
	return string(name[:min(24, len(name))])
}

// printable keeps control characters of a registry's, or of another stranger's,
// away from a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func (p *progress) line(e image.Event) {
	switch e.Stage {
	case image.StageResolved:
		fmt.Fprintf(p.w, "image %s, %s\n", e.Digest, bytesOf(e.Total))
	case image.StageExists:
		fmt.Fprintf(p.w, "%s: is here\n", short(e.Digest))
	case image.StageDownloaded:
		fmt.Fprintf(p.w, "%s: downloaded %s\n", short(e.Digest), bytesOf(e.Total))
	case image.StageCopied:
		fmt.Fprintf(p.w, "%s: copied %s\n", short(e.Digest), bytesOf(e.Total))
	case image.StageUnpacked:
		fmt.Fprintf(p.w, "%s: unpacked\n", short(e.Digest))
	case image.StageRetry:
		fmt.Fprintf(p.w, "%s: interrupted at %s of %s, trying again: %s\n", short(e.Digest), bytesOf(e.Done), bytesOf(e.Total), printable(e.Message))
	}
}

func (p *progress) update(e image.Event) {
	if e.Stage == image.StageResolved {
		fmt.Fprintf(p.w, "image %s, %s\n", e.Digest, bytesOf(e.Total))
		return
	}
	var row *progressRow
	for _, r := range p.rows {
		if r.digest == e.Digest {
			row = r
		}
	}
	if row == nil {
		row = &progressRow{digest: e.Digest}
		p.rows = append(p.rows, row)
	}
	row.stage, row.done, row.total, row.note = e.Stage, e.Done, e.Total, printable(e.Message)
}

// draw writes the rows over what is there. Of more rows than the screen has,
// those that are done go first.
func (p *progress) draw() {
	rows := p.rows
	if room := p.height - 2; len(rows) > room {
		var open []*progressRow
		for _, r := range rows {
			if r.stage != image.StageUnpacked && r.stage != image.StageCopied {
				open = append(open, r)
			}
		}
		rows = open[:min(room, len(open))]
	}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	for _, r := range rows {
		fmt.Fprintf(&b, "\r\x1b[K%s\n", p.row(r))
	}
	for n := len(rows); n < p.drawn; n++ {
		b.WriteString("\r\x1b[K\n")
	}
	p.drawn = max(p.drawn, len(rows))
	io.WriteString(p.w, b.String())
}

func (p *progress) row(r *progressRow) string {
	text := ""
	switch r.stage {
	case image.StageExists:
		text = "is here"
	case image.StageDownload:
		text = "downloading " + bar(r, p.width-60) + fmt.Sprintf(" %s of %s", bytesOf(r.done), bytesOf(r.total))
	case image.StageDownloaded:
		text = "downloaded " + bytesOf(r.total)
	case image.StageCopy:
		text = "copying     " + bar(r, p.width-60) + fmt.Sprintf(" %s of %s", bytesOf(r.done), bytesOf(r.total))
	case image.StageCopied:
		text = "copied " + bytesOf(r.total)
	case image.StageUnpack:
		text = "unpacking   " + bar(r, p.width-60) + fmt.Sprintf(" %s of %s", bytesOf(r.done), bytesOf(r.total))
	case image.StageUnpacked:
		text = "unpacked"
	case image.StageRetry:
		text = "trying again: " + r.note
	}
	line := []rune(short(r.digest) + " " + text)
	return string(line[:min(len(line), p.width-1)])
}

func bar(r *progressRow, width int) string {
	if width < 5 {
		width = 5
	}
	full := width
	if r.total > 0 {
		full = int(int64(width) * min(r.done, r.total) / r.total)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// done ends the display.
func (p *progress) done() {
	if p.bars && !p.quiet {
		p.draw()
	}
}
