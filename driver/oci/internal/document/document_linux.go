package document

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/seccomp"
	"github.com/axocoatl/isolation/driver/oci/internal/bundle"
	"github.com/axocoatl/isolation/guest/plan"
	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/cgroup"
)

// Container is what a document asks for.
type Container struct {
	// Plan is the guest's part. The staging directory, descriptors and
	// loopback are the launcher's to add.
	Plan plan.Plan
	// UIDMap and GIDMap are the maps of the user namespace (user_namespaces(7)).
	UIDMap, GIDMap string
	// Limits are those of the control group.
	Limits cgroup.Limits
	// Rlimits are those that every program starts with.
	Rlimits []wire.Rlimit
	// Idmapped are the mounts that the host opens, with other owners.
	Idmapped []Idmapped
}

// Idmapped is a mount of Plan.Mounts whose files have other owners inside.
type Idmapped struct {
	Mount          int // index
	UIDMap, GIDMap string
}

// Read reads the document of a bundle. A field that is set and not implemented
// is an error of class Unsupported that names it, and so is a value.
func Read(b *bundle.Bundle) (*Container, error) {
	c := b.Config
	if err := check(c); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(c.Version, "1.") {
		return nil, value("ociVersion", c.Version)
	}
	out := &Container{Plan: plan.Plan{Hostname: c.Hostname}}
	for _, read := range []func(*bundle.Bundle) error{out.root, out.linux, out.resources, out.process, out.mounts} {
		if err := read(b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// value is the error of a field whose value is not implemented.
func value(field string, v any) error {
	return &isolation.UnsupportedError{Feature: fmt.Sprintf("%s %.100q of a container's configuration", field, fmt.Sprint(v)), Need: "an engine that implements it"}
}

func (o *Container) root(b *bundle.Bundle) error {
	if b.Config.Root == nil || b.Config.Root.Path != bundle.RootDir {
		return value("root.path", b.Config.Root)
	}
	r := b.Root
	r.ReadOnly = b.Config.Root.Readonly
	r.SetID = b.Config.Process != nil && !b.Config.Process.NoNewPrivileges
	// What the document mounts, scratch directories among it, is not made twice.
	place := map[string]bool{}
	for _, m := range b.Config.Mounts {
		place[path.Clean(m.Destination)] = true
	}
	// So the guest makes their places, too.
	r.Dirs = slices.DeleteFunc(slices.Clone(r.Dirs), func(d plan.Dir) bool { return place[path.Clean(d.Path)] })
	r.Files = slices.DeleteFunc(slices.Clone(r.Files), func(f plan.File) bool { return place[path.Clean(f.Path)] })
	o.Plan.Root = r
	return nil
}

// needed are the namespaces that the launcher makes, all of them new.
var needed = []specs.LinuxNamespaceType{
	specs.UserNamespace, specs.PIDNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
}

func (o *Container) linux(b *bundle.Bundle) (err error) {
	l := b.Config.Linux
	if l == nil {
		return value("linux", nil)
	}
	found := map[specs.LinuxNamespaceType]bool{}
	for _, n := range l.Namespaces {
		if n.Path != "" || !slices.Contains(needed, n.Type) {
			return value("linux.namespaces", n)
		}
		found[n.Type] = true
	}
	if len(found) != len(needed) {
		return value("linux.namespaces", l.Namespaces)
	}
	if o.UIDMap, o.GIDMap, err = Maps(l.UIDMappings, l.GIDMappings); err != nil {
		return err
	}
	o.Plan.Masked, o.Plan.ReadOnly = l.MaskedPaths, l.ReadonlyPaths
	for _, p := range slices.Concat(l.MaskedPaths, l.ReadonlyPaths) {
		if !path.IsAbs(p) {
			return value("linux.maskedPaths or linux.readonlyPaths", p)
		}
	}
	if l.Seccomp != nil {
		if o.Plan.Process.Filter, err = seccomp.Code(l.Seccomp); err != nil {
			return fmt.Errorf("linux.seccomp of a container's configuration: %w (%w)", err, isolation.ErrUnsupported)
		}
	}
	return nil
}

// Maps are the maps of a user namespace.
func Maps(uids, gids []specs.LinuxIDMapping) (uid, gid string, err error) {
	if uid, err = idMap("linux.uidMappings", uids); err != nil {
		return "", "", err
	}
	gid, err = idMap("linux.gidMappings", gids)
	return uid, gid, err
}

// idMap is a map in the form of user_namespaces(7).
func idMap(field string, m []specs.LinuxIDMapping) (string, error) {
	var s strings.Builder
	for _, r := range m {
		fmt.Fprintf(&s, "%d %d %d\n", r.ContainerID, r.HostID, r.Size)
	}
	if s.Len() == 0 {
		return "", value(field, m)
	}
	return s.String(), nil
}

func (o *Container) resources(b *bundle.Bundle) error {
	r := b.Config.Linux.Resources
	if r == nil {
		return nil
	}
	if m := r.Memory; m != nil {
		if m.Limit == nil || *m.Limit <= 0 || m.Swap == nil || *m.Swap != *m.Limit {
			return value("linux.resources.memory", m)
		}
		o.Limits.MemoryBytes = *m.Limit
	}
	if p := r.Pids; p != nil {
		if p.Limit == nil || *p.Limit <= 0 {
			return value("linux.resources.pids", p)
		}
		o.Limits.Pids = *p.Limit
	}
	if c := r.CPU; c != nil {
		if c.Quota == nil || *c.Quota <= 0 || c.Period == nil || *c.Period == 0 {
			return value("linux.resources.cpu", c)
		}
		o.Limits.CPUs = float64(*c.Quota) / float64(*c.Period)
		o.Plan.Process.CPUs = int(math.Ceil(o.Limits.CPUs))
	}
	if io := r.BlockIO; io != nil {
		return o.throttle(io)
	}
	return nil
}

// throttle gathers the limits of each block device.
func (o *Container) throttle(io *specs.LinuxBlockIO) error {
	for _, x := range []struct {
		field string
		list  []specs.LinuxThrottleDevice
		rate  func(*cgroup.IOLimit) *int64
	}{
		{"throttleReadBpsDevice", io.ThrottleReadBpsDevice, func(l *cgroup.IOLimit) *int64 { return &l.ReadBytes }},
		{"throttleWriteBpsDevice", io.ThrottleWriteBpsDevice, func(l *cgroup.IOLimit) *int64 { return &l.WriteBytes }},
		{"throttleReadIOPSDevice", io.ThrottleReadIOPSDevice, func(l *cgroup.IOLimit) *int64 { return &l.ReadOps }},
		{"throttleWriteIOPSDevice", io.ThrottleWriteIOPSDevice, func(l *cgroup.IOLimit) *int64 { return &l.WriteOps }},
	} {
		for _, t := range x.list {
			if t.Major < 0 || t.Major > math.MaxUint32 || t.Minor < 0 || t.Minor > math.MaxUint32 || t.Rate == 0 || t.Rate > math.MaxInt64 {
				return value("linux.resources.blockIO."+x.field, t)
			}
			d := cgroup.Device{Major: uint32(t.Major), Minor: uint32(t.Minor)}
			i := slices.IndexFunc(o.Limits.IO, func(l cgroup.IOLimit) bool { return l.Device == d })
			if i < 0 {
				i = len(o.Limits.IO)
				o.Limits.IO = append(o.Limits.IO, cgroup.IOLimit{Device: d})
			}
			*x.rate(&o.Limits.IO[i]) = int64(t.Rate)
		}
	}
	return nil
}

func (o *Container) process(b *bundle.Bundle) error {
	p := b.Config.Process
	if p == nil {
		return value("process", nil)
	}
	if !path.IsAbs(p.Cwd) {
		return value("process.cwd", p.Cwd)
	}
	o.Plan.Process.UID, o.Plan.Process.GID, o.Plan.Process.Groups = int(p.User.UID), int(p.User.GID), p.User.AdditionalGids
	o.Plan.Process.Home, o.Plan.Process.NoNewPrivs = p.Cwd, p.NoNewPrivileges
	if p.OOMScoreAdj != nil {
		if n := *p.OOMScoreAdj; n < 0 || n > 1000 {
			return value("process.oomScoreAdj", n)
		}
		o.Plan.Process.OOMScoreAdj = *p.OOMScoreAdj
	}
	if c := p.Capabilities; c != nil {
		for _, name := range c.Bounding {
			n := slices.Index(capabilities, name)
			if n < 0 {
				return value("process.capabilities.bounding", name)
			}
			o.Plan.Process.Bounding = append(o.Plan.Process.Bounding, n)
		}
	}
	for _, l := range p.Rlimits {
		n, ok := rlimits[l.Type]
		if !ok || l.Soft > l.Hard {
			return value("process.rlimits", l)
		}
		o.Rlimits = append(o.Rlimits, wire.Rlimit{Resource: n, Cur: l.Soft, Max: l.Hard})
	}
	return nil
}

// rlimits are resources by their names (config.md, "rlimits"). RLIMIT_RTTIME is
// the driver's own.
var rlimits = map[string]uint32{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// capabilities by their numbers (linux/capability.h).
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}
