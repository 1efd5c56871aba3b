package oci

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation/driver/internal/ids"
)

// subRange are rangeSize ids of each kind that an ordinary user of the host may
// use (subuid(5), subgid(5)), which newuidmap and newgidmap map for him.
type subRange struct{ uid, gid uint64 }

// subRanges are all that he has been granted.
type subRanges struct {
	list []subRange
	last atomic.Uint32
}

// next returns one in turn. Who has only one has it for all of his sandboxes.
func (s *subRanges) next() *subRange {
	return &s.list[int(s.last.Add(1))%len(s.list)]
}

// granted are the ranges of this process's user, or says what he lacks.
var granted = sync.OnceValues(func() (*subRanges, error) { return findGranted("/etc/subuid", "/etc/subgid") })

func findGranted(uids, gids string) (*subRanges, error) {
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("%s, which is not there (apt install uidmap, dnf install shadow-utils)", name)
		}
	}
	id := strconv.Itoa(os.Geteuid())
	u, err := user.LookupId(id)
	if err != nil {
		return nil, fmt.Errorf("an entry of /etc/passwd for user %s, whom newuidmap looks for there", id)
	}
	owners := []string{u.Username, id}
	a, b := slots(uids, owners), slots(gids, owners)
	for file, l := range map[string][]uint64{uids: a, gids: b} {
		if len(l) == 0 {
			return nil, fmt.Errorf("a line such as %s:100000:%d in %s, with ids that nobody has", u.Username, rangeSize, file)
		}
	}
	s := &subRanges{}
	for i := range min(len(a), len(b)) {
		s.list = append(s.list, subRange{a[i], b[i]})
	}
	s.last.Store(uint32(os.Getpid()))
	return s, nil
}

// slots lists the beginnings of whole ranges that one of the owners has.
func slots(file string, owners []string) (list []uint64) {
	for _, r := range ids.Subordinate(file, owners...) {
		for first := r[0]; first+rangeSize <= r[1]; first += rangeSize {
			list = append(list, first)
		}
	}
	return list
}

// fullRange reports whether sandboxes get a range of ids: root and other users
// are somebody inside. The error says what is missing.
func fullRange() error {
	if os.Geteuid() == 0 {
		return nil
	}
	_, err := granted()
	if err != nil {
		return fmt.Errorf("a range of user ids, for which root, or an ordinary user with %w", err)
	}
	return nil
}

// around maps the id of the host's user to one, and all others from first on.
func around(id, caller int, first uint64) (maps []specs.LinuxIDMapping) {
	n, f := uint32(id), uint32(first)
	if n > 0 {
		maps = append(maps, specs.LinuxIDMapping{HostID: f, Size: min(n, rangeSize)})
	}
	maps = append(maps, specs.LinuxIDMapping{ContainerID: n, HostID: uint32(caller), Size: 1})
	if n+1 < rangeSize {
		maps = append(maps, specs.LinuxIDMapping{ContainerID: n + 1, HostID: f + n + 1, Size: rangeSize - n - 1})
	}
	return maps
}

// writeGranted has a program of the host's write a map. It checks that the ids are
// this user's to use.
func writeGranted(program string, pid int, lines string) error {
	c := exec.Command(program, slices.Concat([]string{strconv.Itoa(pid)}, strings.Fields(lines))...)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(strings.ToValidUTF8(string(out[:min(len(out), maxSaid)]), "?")))
	}
	return nil
}
