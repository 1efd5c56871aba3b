package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

func readAll(t *testing.T, l *log, at int64) []byte {
	t.Helper()
	r, err := l.read(at)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var got []byte
	p := make([]byte, 70_000)
	for {
		n, err := r.next(t.Context(), p)
		got = append(got, p[:n]...)
		if errors.Is(err, io.EOF) {
			return got
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return p
}

func TestLogIsReadFromAnyOffsetWhileItIsWritten(t *testing.T) {
	l, err := openLog(t.TempDir(), "stdout", 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(3*segmentBytes + 12345)
	var wg sync.WaitGroup
	for _, at := range []int64{0, 0} {
		wg.Go(func() {
			if got := readAll(t, l, at); !bytes.Equal(got, want[at:]) {
				t.Errorf("from %d: %d bytes, want %d, or others", at, len(got), len(want)-int(at))
			}
		})
	}
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 100_001)
		if _, err := l.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	l.close()
	wg.Wait()
	for _, at := range []int64{1, segmentBytes, 2*segmentBytes - 1, int64(len(want))} {
		if got := readAll(t, l, at); !bytes.Equal(got, want[at:]) {
			t.Errorf("from %d: %d bytes, want %d, or others", at, len(got), len(want)-int(at))
		}
	}
	if _, err := l.read(int64(len(want)) + 1); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("beyond the end: %v", err)
	}
}

func TestLogGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	want := pattern(segmentBytes + 10)
	for _, part := range [][]byte{want[:5], want[5 : segmentBytes+1], want[segmentBytes+1:]} {
		l, err := openLog(dir, "stdout", 16<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Write(part); err != nil {
			t.Fatal(err)
		}
		l.close()
	}
	l, err := openLog(dir, "stdout", 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	l.close()
	if got := readAll(t, l, 0); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, or others", len(got), len(want))
	}
}

func TestLogDropsItsBeginning(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, "stdout", 2*segmentBytes)
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(6 * segmentBytes)
	if _, err := l.Write(want); err != nil {
		t.Fatal(err)
	}
	l.close()
	start, end := l.bounds()
	if end != int64(len(want)) || end-start < 2*segmentBytes || end-start > 3*segmentBytes {
		t.Errorf("kept %d to %d", start, end)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 3 {
		t.Errorf("%d files, %v", len(list), err)
	}
	if got := readAll(t, l, start); !bytes.Equal(got, want[start:]) {
		t.Error("what is kept is something else")
	}
	if _, err := l.read(start - 1); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("before what is kept: %v", err)
	}
}

func TestLogReaderHoldsTheWriterBack(t *testing.T) {
	l, err := openLog(t.TempDir(), "stdout", segmentBytes)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := l.read(0)
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(8 * segmentBytes)
	done := make(chan error, 1)
	go func() {
		_, err := l.Write(want)
		l.close()
		done <- err
	}()
	var got []byte
	p := make([]byte, 30_000)
	for len(got) < 4*segmentBytes {
		n, err := slow.next(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p[:n]...)
		if _, end := l.bounds(); end > int64(len(got))+3*segmentBytes {
			t.Fatalf("%d bytes are written, the reader has %d", end, len(got))
		}
	}
	if !bytes.Equal(got, want[:len(got)]) {
		t.Error("the reader has something else")
	}
	slow.close() // lets the writer go
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, end := l.bounds(); end != int64(len(want)) {
		t.Errorf("%d bytes written", end)
	}
}

func TestLogReaderGivesUp(t *testing.T) {
	l, err := openLog(t.TempDir(), "stdout", 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.read(0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.next(ctx, make([]byte, 10)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// TestLogIsReadAfterItsFilesAreGone: who reads when a session is deleted still gets
// the rest; who comes later is told that it is gone.
func TestLogIsReadAfterItsFilesAreGone(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, "stdout", 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(3*segmentBytes + 12345)
	if _, err := l.Write(want); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, segmentBytes)
	for _, at := range []int64{0, 5, segmentBytes, 2*segmentBytes + 7, int64(len(want))} {
		r, err := l.read(at)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		if at == 5 { // it has the first file open
			n, err := r.next(t.Context(), p[:100])
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p[:n]...)
		}
		t.Cleanup(func() {
			defer r.close()
			for {
				n, err := r.next(context.Background(), p)
				got = append(got, p[:n]...)
				if errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Errorf("from %d: %v", at, err)
					break
				}
			}
			if !bytes.Equal(got, want[at:]) {
				t.Errorf("from %d: %d bytes, want %d, or others", at, len(got), len(want)-int(at))
			}
		})
	}
	l.remove()
	l.remove()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := l.read(0); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("a reader that comes later: %v, want NotFound", err)
	}
}
