package guest

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/internal/landlock"
	"github.com/axocoatl/isolation/internal/spawn"
)

// confine puts the thread that starts programs where they are to be: in their
// pid namespace, without capabilities that they could get back, behind Landlock
// and the seccomp filter. Programs have it all from that thread, so that it is
// paid for once. It is done while the guest has CAP_SYS_ADMIN: later a filter
// would want no_new_privs, which programs that become root go without.
//
// Where control groups are of version 2 each program loads the filter itself, and
// makes its cgroup namespace: the call that makes it in its group, clone3, is one
// that the filter does not let through, as it cannot look into its arguments; and
// who makes it has to see the group of both (cgroup_namespaces(7), nsdelegate). So
// the guest keeps CAP_SYS_ADMIN there.
func (g *guest) confine(init *os.File) error {
	p := &g.plan
	if err := g.bound(); err != nil {
		return err
	}
	namespaces := unix.CLONE_NEWPID
	if p.InitGroups {
		namespaces |= unix.CLONE_NEWCGROUP
	}
	if err := g.spawner.Enter(init, namespaces); err != nil {
		return err
	}
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	if len(p.Process.Filter)%size != 0 {
		return fmt.Errorf("plan: seccomp filter of %d bytes", len(p.Process.Filter))
	}
	filter := make([]unix.SockFilter, len(p.Process.Filter)/size)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(filter))), len(p.Process.Filter)), p.Process.Filter)
	p.Process.Filter = nil
	if g.unified() {
		g.filter, filter = filter, nil
	} else if p.GroupNamespace {
		if err := g.enterGroups(); err != nil {
			return err
		}
	}
	var set *os.File
	err := g.spawner.Do(func() (err error) { // where names are the programs'
		set, err = ruleset(p)
		return err
	})
	if errors.Is(err, landlock.ErrMissing) {
		g.notes = append(g.notes, "landlock: "+err.Error())
	} else if err != nil {
		return fmt.Errorf("landlock: %w", err)
	} else {
		defer set.Close()
	}
	return g.spawner.Do(func() error {
		if set != nil {
			if err := landlock.RestrictThread(set); err != nil {
				return err
			}
		}
		if len(filter) == 0 {
			return nil
		}
		return spawn.LoadFilter(filter)
	})
}

// bound starts the thread, and takes from it what programs can never get back. The
// guest may do it before the rest, while it has to wait.
func (g *guest) bound() error {
	if g.bounded {
		return nil
	}
	g.bounded = true
	return g.spawner.Do(func() error { return spawn.DropBounding(g.plan.Process.Bounding) })
}

// unified reports whether programs are made in control groups of version 2.
func (g *guest) unified() bool {
	return g.into != nil || g.vm != nil && g.vm.groups.all.Into() != nil
}

// enterGroups has programs see their control groups as the roots of all.
func (g *guest) enterGroups() error {
	var ns *os.File
	// Where /proc is that of the programs.
	err := g.spawner.Do(func() (err error) {
		ns, err = spawn.GroupNamespace(g.tasks)
		return err
	})
	if err != nil {
		return err
	}
	defer ns.Close()
	return g.spawner.Enter(ns, unix.CLONE_NEWCGROUP)
}

// ruleset says by names what the mounts say by their flags: only what is meant
// to be written can be. It also keeps programs from signalling the guest.
func ruleset(p *plan.Plan) (*os.File, error) {
	const look = landlock.Read | landlock.Execute
	allow := map[string]uint64{"/": landlock.All}
	if p.Root.ReadOnly {
		allow["/"] = look
		for _, m := range p.Mounts {
			switch {
			case m.Type == "proc", m.Target == "/dev":
				allow[m.Target] = look | landlock.WriteFile | landlock.Devices
			case m.Type == "sysfs", m.Attr&unix.MOUNT_ATTR_RDONLY != 0:
			case m.Type != "", m.Scratch != nil, m.FD > 0, m.Source != "" && !device(m):
				allow[m.Target] = landlock.All
			}
		}
	}
	var rules []landlock.Rule
	defer func() {
		for _, r := range rules {
			unix.Close(r.FD)
		}
	}()
	for name, access := range allow {
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // an optional mount
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("fstat", err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR { // other rights make no sense on a file
			access &= landlock.WriteFile | landlock.Execute | landlock.Devices | unix.LANDLOCK_ACCESS_FS_READ_FILE
		}
		rules = append(rules, landlock.Rule{FD: fd, Access: access})
	}
	set, _, err := landlock.New(landlock.Denied{Others: true}, rules)
	return set, err
}

// device reports whether a mount is one of /dev's, which has a rule of its own.
func device(m plan.Mount) bool { return len(m.Target) > 5 && m.Target[:5] == "/dev/" }
