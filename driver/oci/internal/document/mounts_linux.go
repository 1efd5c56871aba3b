package document

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/guest/plan"
)

func (o *Container) mounts(b *bundle.Bundle) error {
	for _, m := range b.Config.Mounts {
		if !path.IsAbs(m.Destination) {
			return value("mounts.destination", m.Destination)
		}
		if m.Type != "bind" && len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return value("mounts.uidMappings", m.Destination)
		}
		var err error
		switch m.Type {
		case "bind":
			err = o.bind(b, m)
		case "proc":
			err = o.proc(m)
		case "tmpfs", "sysfs", "devpts", "mqueue":
			err = o.fileSystem(m)
		default:
			err = value("mounts.type", m.Type)
		}
		if err != nil {
			return err
		}
		if m.Destination == "/dev" {
			o.devices()
		}
	}
	return nil
}

// attributes are the options of a bind mount that is recursive, and of one that
// is not. The launcher sets them all the way down, or on the one mount.
var attributes = []struct {
	recursive, single string
	attr              uint64
}{
	{"rro", "ro", unix.MOUNT_ATTR_RDONLY}, {"rnosuid", "nosuid", unix.MOUNT_ATTR_NOSUID}, {"rnodev", "nodev", unix.MOUNT_ATTR_NODEV},
	{"rnoexec", "noexec", unix.MOUNT_ATTR_NOEXEC}, {"rrw", "rw", 0}, {"rbind", "bind", 0},
}

func attributesOf(m specs.Mount, recursive bool) (attr uint64, err error) {
	kind := "bind"
	if recursive {
		kind = "rbind"
	}
	if !slices.Contains(m.Options, kind) {
		return 0, value("mounts.options", strings.Join(m.Options, ","))
	}
options:
	for _, opt := range m.Options {
		for _, a := range attributes {
			if recursive && opt == a.recursive || !recursive && opt == a.single {
				attr |= a.attr
				continue options
			}
		}
		return 0, value("mounts.options", opt)
	}
	return attr, nil
}

func (o *Container) bind(b *bundle.Bundle, m specs.Mount) error {
	pm := plan.Mount{Target: path.Clean(m.Destination)}
	if bundle.IsScratch(m) {
		attr, err := attributesOf(m, false)
		if err != nil {
			return err
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return value("mounts.uidMappings", m.Destination)
		}
		all := slices.Concat(b.Root.Dirs, b.Shared)
		i := slices.IndexFunc(all, func(d plan.Dir) bool { return d.Scratch && bundle.Scratch(d.Path) == m.Source })
		if i < 0 {
			return value("mounts.source", m.Source)
		}
		pm.Scratch, pm.Attr = &all[i], attr
		o.Plan.Mounts = append(o.Plan.Mounts, pm)
		return nil
	}
	if !path.IsAbs(m.Source) {
		return value("mounts.source", m.Source)
	}
	attr, err := attributesOf(m, true)
	if err != nil {
		return err
	}
	if attr&(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV) != unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV {
		return value("mounts.options", strings.Join(m.Options, ",")) // the host's set-user-ID programs and devices stay the host's
	}
	pm.Source, pm.Attr = m.Source, attr
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		x := Idmapped{Mount: len(o.Plan.Mounts)}
		if x.UIDMap, err = idMap("mounts.uidMappings", m.UIDMappings); err != nil {
			return err
		}
		if x.GIDMap, err = idMap("mounts.gidMappings", m.GIDMappings); err != nil {
			return err
		}
		o.Idmapped = append(o.Idmapped, x)
	}
	o.Plan.Mounts = append(o.Plan.Mounts, pm)
	return nil
}

// proc is mounted by the first process of the programs' pid namespace, always
// with these options.
func (o *Container) proc(m specs.Mount) error {
	want := []string{"nodev", "noexec", "nosuid"}
	if got := slices.Sorted(slices.Values(m.Options)); !slices.Equal(got, want) || m.Source != "proc" {
		return value("mounts.options", strings.Join(m.Options, ","))
	}
	o.Plan.Mounts = append(o.Plan.Mounts, plan.Mount{Target: path.Clean(m.Destination), Type: "proc"})
	return nil
}

// flags are the options of file systems that the kernel wants as flags.
var flags = map[string]uintptr{"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "ro": unix.MS_RDONLY, "rw": 0}

// data are the options that each type of file system may have besides.
var data = map[string][]string{"tmpfs": {"mode", "size", "nr_inodes"}, "devpts": {"newinstance", "ptmxmode", "mode"}}

func (o *Container) fileSystem(m specs.Mount) error {
	if m.Source != m.Type {
		return value("mounts.source", m.Source)
	}
	// A kernel that was built without one of these has nothing there to be
	// reached; Features tells.
	pm := plan.Mount{Target: path.Clean(m.Destination), Type: m.Type, Optional: m.Type == "sysfs" || m.Type == "mqueue"}
	var more []string
	for _, opt := range m.Options {
		key, _, _ := strings.Cut(opt, "=")
		if f, ok := flags[opt]; ok {
			pm.Flags |= f
		} else if slices.Contains(data[m.Type], key) {
			more = append(more, opt)
		} else {
			return value("mounts.options", opt)
		}
	}
	pm.Data = strings.Join(more, ",")
	o.Plan.Mounts = append(o.Plan.Mounts, pm)
	return nil
}

// devices adds what every container has in its /dev (config-linux.md, "Default
// Devices"; runtime-linux.md, "Dev symbolic links").
func (o *Container) devices() {
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		o.Plan.Mounts = append(o.Plan.Mounts, plan.Mount{
			Source: "/dev/" + d, Target: "/dev/" + d, Attr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		})
	}
	o.Plan.Late = append(o.Plan.Late,
		plan.Link{Path: "/dev/ptmx", Target: "pts/ptmx"}, plan.Link{Path: "/dev/fd", Target: "/proc/self/fd"},
		plan.Link{Path: "/dev/stdin", Target: "/proc/self/fd/0"}, plan.Link{Path: "/dev/stdout", Target: "/proc/self/fd/1"},
		plan.Link{Path: "/dev/stderr", Target: "/proc/self/fd/2"})
}
