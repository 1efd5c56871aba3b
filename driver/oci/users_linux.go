package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/spawn"
)

// Ranges of user ids that containers may have, as systemd-nspawn takes them
// (systemd, docs/UIDS-GIDS.md): each sandbox gets one of its own, so that what
// it owns anywhere is nobody else's.
const (
	rangeSize  = 65536
	rangeFirst = 8     // times rangeSize
	rangeLast  = 28671 // times rangeSize
)

// idMap is how the ids of a sandbox are mapped.
type idMap struct {
	base   int      // root: the host's id of the sandbox's 0
	single bool     // one id only: the sandbox's user is the host's
	uid    int      // single: who that is inside
	gid    int      // likewise
	lock   *os.File // of the range; nil: single
}

// ranges hands out ranges. One is taken by a lock on a file, which the kernel
// releases when the process ends however it ends.
type ranges struct {
	mu   sync.Mutex
	next int
}

// rangeDir is the same for all programs of the host.
const rangeDir = "/run/axo/ids"

func (r *ranges) take() (*idMap, error) {
	if os.Geteuid() != 0 {
		return &idMap{single: true, uid: userID, gid: userID}, nil
	}
	if err := os.MkdirAll(rangeDir, 0o700); err != nil {
		return nil, fmt.Errorf("user ids: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next < rangeFirst {
		r.next = rangeFirst
	}
	for tried := 0; tried <= rangeLast-rangeFirst; tried++ {
		n := r.next
		if r.next++; r.next > rangeLast {
			r.next = rangeFirst
		}
		f, err := os.OpenFile(filepath.Join(rangeDir, strconv.Itoa(n)), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("user ids: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if r.next > n && tried == 0 {
				r.next = n + 1
			}
			return &idMap{base: n * rangeSize, lock: f}, nil
		}
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("user ids: lock: %w", err)
		}
	}
	return nil, fmt.Errorf("all %d ranges of user ids are taken: %w", rangeLast-rangeFirst+1, isolation.ErrResourceExhausted)
}

// release gives a range back. All processes that have it are gone.
func (m *idMap) release() {
	if m.lock != nil {
		m.lock.Close()
		m.lock = nil
	}
}

// write writes the maps of a user namespace (user_namespaces(7)).
func (m *idMap) write(pid int) error {
	uids, gids := fmt.Sprintf("0 %d %d\n", m.base, rangeSize), fmt.Sprintf("0 %d %d\n", m.base, rangeSize)
	if m.single {
		uids, gids = fmt.Sprintf("%d %d 1\n", m.uid, os.Geteuid()), fmt.Sprintf("%d %d 1\n", m.gid, os.Getegid())
	}
	dir := fmt.Sprintf("/proc/%d/", pid)
	if m.single {
		if err := writeFile(dir+"setgroups", "deny"); err != nil {
			return err
		}
	}
	if err := writeFile(dir+"gid_map", gids); err != nil {
		return err
	}
	return writeFile(dir+"uid_map", uids)
}

func writeFile(name, data string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	return errors.Join(err, f.Close())
}

// credential is who the guest is in its user namespace.
func (m *idMap) credential() *spawn.Credential {
	return &spawn.Credential{UID: uint32(m.uid), GID: uint32(m.gid), KeepGroups: m.single}
}
