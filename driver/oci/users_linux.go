package oci

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	base   int  // root: the host's id of the sandbox's 0
	single bool // one id only: the sandbox's user is the host's
	uid    int  // not root: who the host's user is inside
	gid    int  // likewise
	sub    *subRange
	lock   *os.File // root: of the range
}

// ranges hands out ranges. One is taken by a lock on a byte of a file, which the
// guest has a descriptor of as well: the kernel releases it when both this process
// and the first process of the container are gone, however they went, and there is
// nothing to clean up.
type ranges struct {
	mu       sync.Mutex
	next     int
	granted  [][2]uint64 // to users of the host: first, and first after it
	looked   bool
	fileName string // for tests; empty: rangeFile
}

// rangeFile is the same for all programs of the host.
const rangeFile = "/run/axo/ids.lock"

func (r *ranges) take() (*idMap, error) {
	if os.Geteuid() != 0 {
		sub, _ := granted()
		if sub == nil {
			return &idMap{single: true, uid: userID, gid: userID}, nil
		}
		return &idMap{uid: userID, gid: userID, sub: sub.next()}, nil
	}
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
		r.granted = append(subordinate("/etc/subuid"), subordinate("/etc/subgid")...)
		r.next = os.Getpid() * 61 % count // not where every other program begins
	}
	for range count {
		n := rangeFirst + r.next
		r.next = (r.next + 1) % count
		if r.isGranted(uint64(n) * rangeSize) {
			continue
		}
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(n), Len: 1}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
		if err == nil {
			return &idMap{base: n * rangeSize, lock: f}, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			f.Close()
			return nil, fmt.Errorf("user ids: lock: %w", err)
		}
	}
	f.Close()
	return nil, fmt.Errorf("all %d ranges of user ids are taken: %w", count, isolation.ErrResourceExhausted)
}

func (r *ranges) isGranted(base uint64) bool {
	return slices.ContainsFunc(r.granted, func(g [2]uint64) bool { return base < g[1] && g[0] < base+rangeSize })
}

// subordinate reads the ranges that the host's users may use themselves
// (subuid(5)), all of them, or some. A file that is not there grants none.
func subordinate(file string, owners ...string) (list [][2]uint64) {
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

// release gives a range back. All processes that have it are gone.
func (m *idMap) release() {
	if m.lock != nil {
		m.lock.Close()
		m.lock = nil
	}
}

// host is who the guest is on the host.
func (m *idMap) host() int {
	if m.base > 0 {
		return m.base
	}
	return int(host(m.uids(), m.credential().UID))
}

// host is the host's id for one of the sandbox's.
func host(maps []specs.LinuxIDMapping, id uint32) uint32 {
	for _, r := range maps {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + id - r.ContainerID
		}
	}
	return math.MaxUint32 // nobody's
}

// uids and gids are the maps of the sandbox's user namespace.
func (m *idMap) uids() []specs.LinuxIDMapping {
	if m.sub != nil {
		return around(m.uid, os.Geteuid(), m.sub.uid)
	}
	if m.single {
		return []specs.LinuxIDMapping{{ContainerID: uint32(m.uid), HostID: uint32(os.Geteuid()), Size: 1}}
	}
	return []specs.LinuxIDMapping{{HostID: uint32(m.base), Size: rangeSize}}
}

func (m *idMap) gids() []specs.LinuxIDMapping {
	if m.sub != nil {
		return around(m.gid, os.Getegid(), m.sub.gid)
	}
	if m.single {
		return []specs.LinuxIDMapping{{ContainerID: uint32(m.gid), HostID: uint32(os.Getegid()), Size: 1}}
	}
	return m.uids()
}

// writeMaps writes the maps of a user namespace (user_namespaces(7)). Who maps
// only himself has to give up setgroups first.
func (m *idMap) writeMaps(pid int, uids, gids string) error {
	if m.sub != nil {
		return errors.Join(writeGranted("newgidmap", pid, gids), writeGranted("newuidmap", pid, uids))
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
	if m.sub != nil {
		return &spawn.Credential{}
	}
	return &spawn.Credential{UID: uint32(m.uid), GID: uint32(m.gid), KeepGroups: m.single}
}
