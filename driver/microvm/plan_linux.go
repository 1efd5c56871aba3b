package microvm

import (
	"cmp"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/internal/seccomp"
	"github.com/axocoatl/isolation/guest/plan"
)

// plan is what the guest makes of the machine.
func (b *builder) plan() (*plan.Machine, error) {
	c := b.vmm.caps()
	m := &plan.Machine{Port: c.port, VsockPort: c.vsockPort, Image: plan.Disk{Device: "vda", Type: "erofs"}}
	m.Plan.Process.NoNewPrivs = true
	var names []string // of capabilities
	if b.Recipe.Session {
		m.Plan.Process.NoNewPrivs, m.Plan.Root.SetID = false, true
		for _, name := range slices.Sorted(maps.Keys(session)) {
			names, m.Plan.Process.Bounding = append(names, name), append(m.Plan.Process.Bounding, session[name])
		}
	}
	// As in a container: the guest's kernel has less to be attacked by.
	filter, err := seccomp.Profile(names, false)
	if err != nil {
		return nil, err
	}
	if m.Plan.Process.Filter, err = seccomp.Code(filter); err != nil {
		return nil, err
	}
	if !b.Image {
		m.Plan.Process.UID, m.Plan.Process.GID, m.Plan.Process.Home = userID, userID, userHome
		m.Plan.Root.Dirs = []plan.Dir{
			{Path: "/root", Mode: 0o700, UID: -1, GID: -1}, {Path: "/var/tmp", Mode: 0o1777, UID: -1, GID: -1},
			{Path: userHome, Mode: 0o755, UID: userID, GID: userID},
		}
		m.Plan.Root.Files = []plan.File{
			{Path: "/etc/passwd", Mode: 0o644, Data: "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
			{Path: "/etc/group", Mode: 0o644, Data: "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"},
			{Path: "/etc/nsswitch.conf", Mode: 0o644, Data: "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"},
		}
		return m, nil
	}
	// As a container of the image has it.
	dirs, err := b.Config.Dirs()
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		m.Plan.Root.Dirs = append(m.Plan.Root.Dirs, plan.Dir{Path: d})
	}
	m.Plan.Root.Files = []plan.File{{Path: "/etc/resolv.conf", Mode: 0o644}}
	m.Plan.Process.User, m.Plan.Process.Image = cmp.Or(b.Config.User, "0"), true
	return m, nil
}

// Who programs are where the root is the host's system.
const (
	userID   = 1000
	userHome = "/home/user"
)

// session are the capabilities that a program of profile session can get: those
// that docker gives its containers, but for CAP_MKNOD. There is no user namespace
// around the programs of a machine, so that a device that root makes is one: the
// guest's channel, the machine's memory (capabilities(7)).
var session = map[string]int{
	"CAP_AUDIT_WRITE": unix.CAP_AUDIT_WRITE, "CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_FOWNER": unix.CAP_FOWNER,
	"CAP_FSETID": unix.CAP_FSETID, "CAP_KILL": unix.CAP_KILL, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "CAP_NET_RAW": unix.CAP_NET_RAW,
	"CAP_SETFCAP": unix.CAP_SETFCAP, "CAP_SETGID": unix.CAP_SETGID, "CAP_SETPCAP": unix.CAP_SETPCAP, "CAP_SETUID": unix.CAP_SETUID,
	"CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT,
}
