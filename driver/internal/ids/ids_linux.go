// Package ids gives sandboxes user ids of their own on the host.
package ids

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// Ranges of user ids that sandboxes may have, as systemd-nspawn takes them
// (systemd, docs/UIDS-GIDS.md): each sandbox gets one of its own, so that what
// it owns anywhere is nobody else's.
const (
	Size       = 65536
	rangeFirst = 8     // times Size
	rangeLast  = 28671 // times Size
)

// Ranges hands out ranges. One is taken by a lock on a byte of a file: the kernel
// releases it when all who have the descriptor are gone, however they went, and
// there is nothing to clean up.
type Ranges struct {
	mu       sync.Mutex
	next     int
	granted  [][2]uint64 // to users of the host: first, and first after it
	looked   bool
	fileName string // for tests; empty: rangeFile
}

// rangeFile is the same for all programs of the host.
const rangeFile = "/run/axo/ids.lock"

// Range is one that nobody else has until its file is closed, by all who have it.
type Range struct {
	Base int // the first id
	File *os.File
}

// Take takes a range. Only root can use one.
func (r *Ranges) Take() (*Range, error) {
	name := cmp.Or(r.fileName, rangeFile)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("user ids: %w", err)
	}
	// A lock belongs to the open file: each sandbox has one of its own.
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("user ids: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	const count = rangeLast - rangeFirst + 1
	if !r.looked {
		r.looked = true
		r.granted = append(Subordinate("/etc/subuid"), Subordinate("/etc/subgid")...)
		r.next = os.Getpid() * 61 % count // not where every other program begins
	}
	for range count {
		n := rangeFirst + r.next
		r.next = (r.next + 1) % count
		if r.isGranted(uint64(n) * Size) {
			continue
		}
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(n), Len: 1}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
		if err == nil {
			return &Range{Base: n * Size, File: f}, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			f.Close()
			return nil, fmt.Errorf("user ids: lock: %w", err)
		}
	}
	f.Close()
	return nil, fmt.Errorf("all %d ranges of user ids are taken: %w", count, isolation.ErrResourceExhausted)
}

// Retake takes the range that begins with an id, whose last owner has ended; nil if
// somebody has it.
func (r *Ranges) Retake(base int) *Range {
	n := base / Size
	if base%Size != 0 || n < rangeFirst || n > rangeLast {
		return nil
	}
	f, err := os.OpenFile(cmp.Or(r.fileName, rangeFile), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(n), Len: 1}
	if unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock) != nil {
		f.Close()
		return nil
	}
	return &Range{Base: base, File: f}
}

func (r *Ranges) isGranted(base uint64) bool {
	return slices.ContainsFunc(r.granted, func(g [2]uint64) bool { return base < g[1] && g[0] < base+Size })
}

// Subordinate reads the ranges that the host's users may use themselves
// (subuid(5)), all of them, or some. A file that is not there grants none.
func Subordinate(file string, owners ...string) (list [][2]uint64) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || len(owners) > 0 && !slices.Contains(owners, f[0]) {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		n, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil {
			list = append(list, [2]uint64{first, first + n})
		}
	}
	return list
}
