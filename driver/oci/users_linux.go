package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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

// uids and gids are the maps of the sandbox's user namespace.
func (m *idMap) uids() []specs.LinuxIDMapping {
	if m.single {
		return []specs.LinuxIDMapping{{ContainerID: uint32(m.uid), HostID: uint32(os.Geteuid()), Size: 1}}
	}
	return []specs.LinuxIDMapping{{HostID: uint32(m.base), Size: rangeSize}}
}

func (m *idMap) gids() []specs.LinuxIDMapping {
	if m.single {
		return []specs.LinuxIDMapping{{ContainerID: uint32(m.gid), HostID: uint32(os.Getegid()), Size: 1}}
	}
	return m.uids()
}

// writeMaps writes the maps of a user namespace (user_namespaces(7)). Who maps
// only himself has to give up setgroups first.
func writeMaps(pid int, uids, gids string, single bool) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	if single {
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
