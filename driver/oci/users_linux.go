package oci

import (
	"errors"
	"fmt"
	"math"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation/driver/internal/ids"
	"github.com/axocoatl/isolation/internal/spawn"
)

// rangeSize is how many ids a sandbox has.
const rangeSize = ids.Size

// idMap is how the ids of a sandbox are mapped.
type idMap struct {
	base   int  // root: the host's id of the sandbox's 0
	single bool // one id only: the sandbox's user is the host's
	uid    int  // not root: who the host's user is inside
	gid    int  // likewise
	sub    *subRange
	lock   *os.File // root: of the range
}

// ranges hands out ranges of ids. The guest has the descriptor of one as well.
type ranges struct{ ids.Ranges }

func (r *ranges) take() (*idMap, error) {
	if os.Geteuid() != 0 {
		sub, _ := granted()
		if sub == nil {
			return &idMap{single: true, uid: userID, gid: userID}, nil
		}
		return &idMap{uid: userID, gid: userID, sub: sub.next()}, nil
	}
	x, err := r.Take()
	if err != nil {
		return nil, err
	}
	return &idMap{base: x.Base, lock: x.File}, nil
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
