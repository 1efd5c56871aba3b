package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/axocoatl/isolation"
)

// segmentBytes is the size of one file of a log.
const segmentBytes = 1 << 20

// log is one output stream of a program, on disk: what is written is there when
// Write returns, for readers that follow it and for the process that comes after
// this one. Offsets are of the stream, whose beginning is dropped in whole
// segments when it is longer than the log keeps, and when nobody is reading there:
// a reader holds the program back, as one at a pipe does. It is safe for
// concurrent use.
type log struct {
	dir, name string // segments are dir/name.OFFSET
	keep      int64  // bytes

	mu      sync.Mutex
	starts  []int64              // of the segments, ascending; guarded by mu
	end     int64                // guarded by mu
	file    *os.File             // of the last segment; nil: none is open; guarded by mu
	closed  bool                 // nothing more comes; guarded by mu
	err     error                // of the first write that failed; guarded by mu
	changed chan struct{}        // closed and replaced when something changes; guarded by mu
	readers map[*reader]struct{} // guarded by mu
	gone    bool                 // its files are being removed: only who reads already has them; guarded by mu
}

// openLog finds what is there of a log, and goes on at its end.
func openLog(dir, name string, keep int64) (*log, error) {
	l := &log{dir: dir, name: name, keep: max(keep, segmentBytes), changed: make(chan struct{}), readers: map[*reader]struct{}{}}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range list {
		digits, ok := strings.CutPrefix(f.Name(), name+".")
		if !ok {
			continue
		}
		if at, err := strconv.ParseInt(digits, 10, 64); err == nil && at >= 0 {
			l.starts = append(l.starts, at)
		}
	}
	slices.Sort(l.starts)
	for i, at := range l.starts {
		info, err := os.Stat(l.path(at))
		if err != nil {
			return nil, err
		}
		l.end = at + info.Size()
		if i+1 < len(l.starts) && l.end != l.starts[i+1] {
			return nil, fmt.Errorf("log %s: the segment at %d ends at %d, and the next begins at %d", filepath.Join(dir, name), at, l.end, l.starts[i+1])
		}
	}
	return l, nil
}

// beginLog makes a log that begins at an offset: what was before is another's.
func beginLog(dir, name string, at int64) error {
	f, err := os.OpenFile((&log{dir: dir, name: name}).path(at), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (l *log) path(start int64) string {
	return filepath.Join(l.dir, l.name+"."+strconv.FormatInt(start, 10))
}

// Write appends. When the disk is full the program's output is lost from there
// on, which is told to the program's driver: it counts what did not arrive.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	total := 0
	for len(p) > 0 {
		if l.closed {
			return total, errEnded
		}
		if l.err != nil {
			return total, l.err
		}
		if l.heldLocked() {
			changed := l.changed
			l.mu.Unlock()
			<-changed
			l.mu.Lock()
			continue
		}
		n, err := l.appendLocked(p)
		total += n
		p = p[n:]
		if err != nil {
			l.err = fmt.Errorf("keep output: %w", err)
		}
		if n > 0 || err != nil {
			l.changeLocked()
		}
	}
	return total, nil
}

// errEnded is output that comes when the program's end is written down: of a writer
// that was given up.
var errEnded = errors.New("the log has ended")

func (l *log) appendLocked(p []byte) (int, error) {
	last := int64(-1)
	if len(l.starts) > 0 {
		last = l.starts[len(l.starts)-1]
	}
	if last < 0 || l.end-last >= segmentBytes {
		if l.file != nil {
			l.file.Close()
		}
		f, err := os.OpenFile(l.path(l.end), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			l.file = nil
			return 0, err
		}
		l.file = f
		l.starts = append(l.starts, l.end)
		last = l.end
		l.dropLocked()
	}
	if l.file == nil {
		f, err := os.OpenFile(l.path(last), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return 0, err
		}
		l.file = f
	}
	n, err := l.file.Write(p[:min(int64(len(p)), segmentBytes-(l.end-last))])
	l.end += int64(n)
	return n, err
}

// heldLocked reports whether to write more is to drop what somebody still reads.
func (l *log) heldLocked() bool {
	if len(l.starts) < 2 || l.end-l.starts[1] < l.keep {
		return false
	}
	return l.readLocked(l.starts[1])
}

// readLocked reports whether somebody reads before an offset.
func (l *log) readLocked(end int64) bool {
	for r := range l.readers {
		if r.at < end {
			return true
		}
	}
	return false
}

// dropLocked removes segments from the front until no more is kept than should be.
func (l *log) dropLocked() {
	for len(l.starts) > 1 && l.end-l.starts[1] >= l.keep && !l.readLocked(l.starts[1]) {
		_ = os.Remove(l.path(l.starts[0])) // what cannot be removed goes with the session
		l.starts = l.starts[1:]
	}
}

func (l *log) changeLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// close says that nothing more is written. Readers get what is there, and then
// io.EOF.
func (l *log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	if !l.closed {
		l.closed = true
		l.changeLocked()
	}
}

// remove says that the files are about to be removed. Who reads by now keeps open
// what he has not read: the end of a program is told with all of its output, or it is
// said to be gone, to a reader that comes later.
func (l *log) remove() {
	l.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return
	}
	l.gone = true
	for r := range l.readers {
		r.kept = map[int64]*os.File{}
		for i, at := range l.starts {
			if i+1 < len(l.starts) && l.starts[i+1] <= r.at || at == r.from && r.file != nil {
				continue
			}
			if f, err := os.Open(l.path(at)); err == nil {
				r.kept[at] = f
			}
		}
	}
}

// bounds returns the offsets of the first byte that is kept and of the end.
func (l *log) bounds() (start, end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.startLocked(), l.end
}

func (l *log) startLocked() int64 {
	if len(l.starts) == 0 {
		return l.end
	}
	return l.starts[0]
}

// reader follows a log, until it is closed. It is for one goroutine at a time.
type reader struct {
	l    *log
	at   int64 // guarded by l.mu
	file *os.File
	from int64              // where file begins; guarded by l.mu, as file is
	kept map[int64]*os.File // of a log whose files are removed: what is left, by its beginning; guarded by l.mu
}

// read returns a reader from an offset on: FailedPrecondition if it is not kept
// any more, InvalidArgument if it is not there yet.
func (l *log) read(at int64) (*reader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch start := l.startLocked(); {
	case l.gone:
		return nil, fmt.Errorf("the output was removed: %w", isolation.ErrNotFound)
	case at < start:
		return nil, fmt.Errorf("output before byte %d is not kept any more: %w", start, isolation.ErrFailedPrecondition)
	case at > l.end:
		return nil, fmt.Errorf("offset %d is beyond the %d bytes that were written: %w", at, l.end, isolation.ErrInvalidArgument)
	}
	r := &reader{l: l, at: at}
	l.readers[r] = struct{}{}
	return r, nil
}

// next reads what is there, and waits for it if nothing is. io.EOF: no more will
// come.
func (r *reader) next(ctx context.Context, p []byte) (int, error) {
	for {
		n, changed, err := r.now(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// now reads what is there. Without any it returns what is closed when there is
// more.
func (r *reader) now(p []byte) (int, <-chan struct{}, error) {
	r.l.mu.Lock()
	at, closed, changed := r.at, r.l.closed, r.l.changed
	segment, limit := r.l.segmentLocked(at)
	// Nothing is dropped that this reader has not read.
	err := r.openLocked(segment, at == limit)
	r.l.mu.Unlock()
	if err != nil {
		return 0, nil, err
	}
	if at == limit {
		if closed {
			return 0, nil, io.EOF
		}
		return 0, changed, nil
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), limit-at)], at-segment)
	r.l.mu.Lock()
	r.at += int64(n)
	if r.at == limit {
		r.l.changeLocked() // a writer may wait for it
	}
	r.l.mu.Unlock()
	if n > 0 {
		err = nil
	}
	return n, changed, err
}

// openLocked opens a segment, unless it is open, or nothing is to be read.
func (r *reader) openLocked(segment int64, nothing bool) (err error) {
	if nothing || r.file != nil && r.from == segment {
		return nil
	}
	r.closeFileLocked()
	f := r.kept[segment]
	if delete(r.kept, segment); f == nil {
		f, err = os.Open(r.l.path(segment))
	}
	r.file, r.from = f, segment
	return err
}

// segmentLocked returns where the segment with an offset begins, and where what
// can be read of it ends.
func (l *log) segmentLocked(at int64) (start, limit int64) {
	i, found := slices.BinarySearch(l.starts, at)
	if !found {
		i--
	}
	if i < 0 {
		return l.end, l.end
	}
	if i+1 < len(l.starts) {
		return l.starts[i], l.starts[i+1]
	}
	return l.starts[i], l.end
}

// close lets go of the log.
func (r *reader) close() {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	r.closeFileLocked()
	for _, f := range r.kept {
		f.Close()
	}
	r.kept = nil
	if _, ok := r.l.readers[r]; ok {
		delete(r.l.readers, r)
		r.l.changeLocked()
	}
}

func (r *reader) closeFileLocked() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}
