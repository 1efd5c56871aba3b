package bundle

import (
	"math"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/guest/plan"
)

// Bundle is a container before it is made.
type Bundle struct {
	Config *specs.Spec
	// Root is what the root file system starts from. Directories with Scratch
	// are those that Config mounts from Scratch paths.
	Root plan.Root
	// Shared are Scratch directories in what Config mounts, such as /dev/shm.
	Shared []plan.Dir
}

// The paths of a bundle.
const (
	RootDir    = "rootfs"
	ScratchDir = "scratch"
)

// Facts are what a container's description takes from its host.
type Facts struct {
	// System are the host's directories of programs and libraries that a
	// container without an image sees; see [HostSystem].
	System []Entry
	// Layers make the root of an image: directories, base first. System is not
	// used then.
	Layers []string
	// Dirs are directories of an image that are made if they are not there.
	Dirs []string
	// User is who programs are unless they ask for another.
	User User
	// UIDs and GIDs map the container's ids to the host's.
	UIDs, GIDs []specs.LinuxIDMapping
	// Mounts are what is known of the Spec's, in their order.
	Mounts []Source
	// DiskBytes bounds what is written where the Spec does not.
	DiskBytes int64
	// Disks are the block devices that a limit on reading and writing is for.
	Disks []Disk
	// Seccomp is the profile of programs. It may be shared.
	Seccomp *specs.LinuxSeccomp
}

// Entry is a part of the host's system: a directory or file, or a link.
type Entry struct {
	Path string
	Link string // where a link leads; empty: it is none
	File bool
	// Text is the content of a small file, which is written again: that takes a
	// fraction of the time of a mount. Empty: it is mounted.
	Text string
	// NoExec: nothing in it is a program.
	NoExec bool
}

// Disk is a block device of the host.
type Disk struct{ Major, Minor int64 }

// User is an account of the container.
type User struct {
	Name     string // empty: no entry in /etc/passwd is made for it
	UID, GID int
	Home     string
}

// Source is what is known of the source of a mount.
type Source struct {
	File bool
	// Mapped: an idmapped mount (mount_setattr(2)) makes the owner, UID and GID
	// on the host, the container's user. Else the mount is as it is.
	Mapped   bool
	UID, GID int
}

// Inodes bounds the files of a container's writable file system.
const Inodes = 1 << 20

// New describes the container of a Spec.
func New(spec isolation.Spec, f Facts) *Bundle {
	b := &Bundle{Config: &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: RootDir, Readonly: len(f.Layers) == 0},
		Hostname: spec.Hostname,
		Linux: &specs.Linux{
			UIDMappings: f.UIDs, GIDMappings: f.GIDs,
			Resources:   resources(spec.Resources, f.Disks),
			Namespaces:  namespaces(),
			Seccomp:     f.Seccomp,
			MaskedPaths: masked, ReadonlyPaths: readOnly,
		},
	}}
	if b.Config.Hostname == "" {
		b.Config.Hostname = "sandbox"
	}
	b.Config.Process = process(spec, f.User)
	b.Root = plan.Root{Size: spec.Resources.DiskBytes, Inodes: Inodes, ReadOnly: b.Config.Root.Readonly}
	if b.Root.Size == 0 {
		b.Root.Size = f.DiskBytes
	}
	for _, dir := range f.Layers {
		b.Root.Overlay = append(b.Root.Overlay, plan.Layer{Source: dir})
	}
	for _, dir := range f.Dirs {
		b.Root.Dirs = append(b.Root.Dirs, plan.Dir{Path: dir})
	}
	if len(f.Layers) == 0 {
		b.system(f)
	}
	b.kernel()
	b.files(
		plan.File{Path: "/etc/hostname", Mode: 0o644, Data: b.Config.Hostname + "\n"},
		plan.File{Path: "/etc/hosts", Mode: 0o644, Data: "127.0.0.1\tlocalhost " + b.Config.Hostname + "\n::1\tlocalhost\n"},
		plan.File{Path: "/etc/resolv.conf", Mode: 0o644},
	)
	for i, m := range spec.Mounts {
		b.hostMount(m, f.Mounts[i], f)
	}
	return b
}

// process says what every program has; what it runs is not known yet.
func process(spec isolation.Spec, u User) *specs.Process {
	p := &specs.Process{
		Cwd: "/", NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{},
		User:        specs.User{UID: uint32(u.UID), GID: uint32(u.GID)},
		OOMScoreAdj: pointer(1000),
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_CORE"},
			{Type: "RLIMIT_NOFILE", Soft: softFiles, Hard: hardFiles},
			{Type: "RLIMIT_NPROC", Soft: processes, Hard: processes},
		},
	}
	if u.Home != "" {
		p.Cwd = u.Home
	}
	if c := Capabilities(spec); len(c) > 0 {
		// Set-user-ID programs of the image work, inside the namespace.
		p.NoNewPrivileges = false
		p.Capabilities = &specs.LinuxCapabilities{Bounding: c}
	}
	return p
}

const softFiles, hardFiles = 1024, 4096

// processes bounds a user of the container, whose ids are nobody else's, where
// no control group does.
const processes = 4096

// Capabilities are those that programs of a Spec can have.
func Capabilities(spec isolation.Spec) []string {
	if spec.Profile == "session" {
		return session
	}
	return nil
}

// session are the capabilities that docker gives its containers; here they are
// of the container's own user namespace.
var session = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

func pointer[T any](v T) *T { return &v }

func resources(r isolation.Resources, disks []Disk) *specs.LinuxResources {
	if r.MemoryBytes == 0 && r.Pids == 0 && r.CPUs == 0 && r.IO.IsZero() {
		return nil
	}
	out := &specs.LinuxResources{}
	if n := r.MemoryBytes; n > 0 {
		out.Memory = &specs.LinuxMemory{Limit: &n, Swap: &n} // as much with swap: none
	}
	if n := r.Pids; n > 0 {
		out.Pids = &specs.LinuxPids{Limit: &n}
	}
	if r.CPUs > 0 {
		const period = 100_000
		out.CPU = &specs.LinuxCPU{Period: pointer(uint64(period)), Quota: pointer(int64(math.Ceil(r.CPUs * period)))}
	}
	if !r.IO.IsZero() {
		each := func(rate int64) (list []specs.LinuxThrottleDevice) {
			for _, d := range disks {
				if rate > 0 {
					t := specs.LinuxThrottleDevice{Rate: uint64(rate)}
					t.Major, t.Minor = d.Major, d.Minor
					list = append(list, t)
				}
			}
			return list
		}
		out.BlockIO = &specs.LinuxBlockIO{
			ThrottleReadBpsDevice: each(r.IO.ReadBytes), ThrottleWriteBpsDevice: each(r.IO.WriteBytes),
			ThrottleReadIOPSDevice: each(r.IO.ReadOps), ThrottleWriteIOPSDevice: each(r.IO.WriteOps),
		}
	}
	return out
}

func namespaces() []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
		{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
	}
}

func (b *Bundle) mount(m ...specs.Mount) { b.Config.Mounts = append(b.Config.Mounts, m...) }

func (b *Bundle) files(f ...plan.File) { b.Root.Files = append(b.Root.Files, f...) }

// scratch adds a writable directory.
func (b *Bundle) scratch(d plan.Dir) plan.Dir {
	d.Scratch = true
	b.mount(specs.Mount{
		Destination: d.Path, Type: "bind", Source: Scratch(d.Path), Options: []string{"bind", "rw", "nosuid", "nodev"},
	})
	return d
}

// Scratch is the path in the bundle of a container's writable directory.
func Scratch(dir string) string { return path.Join(ScratchDir, dir) }

// IsScratch reports whether a mount is of one.
func IsScratch(m specs.Mount) bool { return strings.HasPrefix(m.Source, ScratchDir+"/") }

// hostMount adds a directory or file of the caller's.
func (b *Bundle) hostMount(m isolation.Mount, s Source, f Facts) {
	// What is mounted below it is mounted too, under the same terms: hence
	// the recursive forms of the options.
	out := specs.Mount{Destination: path.Clean(m.Destination), Type: "bind", Source: m.Source, Options: []string{"rbind", "rnosuid", "rnodev"}}
	if m.ReadOnly {
		out.Options = append(out.Options, "rro")
	}
	if s.Mapped {
		out.UIDMappings = []specs.LinuxIDMapping{{ContainerID: uint32(s.UID), HostID: host(f.UIDs, f.User.UID), Size: 1}}
		out.GIDMappings = []specs.LinuxIDMapping{{ContainerID: uint32(s.GID), HostID: host(f.GIDs, f.User.GID), Size: 1}}
	}
	b.mount(out)
	b.target(out.Destination, s.File)
}

// host is the host's id for one of the container's.
func host(m []specs.LinuxIDMapping, id int) uint32 {
	for _, r := range m {
		if n := uint32(id) - r.ContainerID; uint32(id) >= r.ContainerID && n < r.Size {
			return r.HostID + n
		}
	}
	return math.MaxUint32 // nobody's: the mount fails
}

// target makes the place of a mount in a root that is made here. That of an
// image is made by who mounts: what is there is the image's to say.
func (b *Bundle) target(name string, file bool) {
	switch {
	case len(b.Root.Overlay) > 0:
	case file:
		b.files(plan.File{Path: name, Mode: 0o644})
	default:
		b.Root.Dirs = append(b.Root.Dirs, plan.Dir{Path: name, Mode: 0o755, UID: -1, GID: -1})
	}
}
