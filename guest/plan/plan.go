// Package plan is the document by which a host tells the guest, the first process
// of a sandbox, what the sandbox is. In a virtual machine the guest makes all of
// it; in a container it finds the root made, by the host's child or by an OCI
// runtime, and does the rest. Both are of one build, and the document comes from
// the host: it is trusted, and has no versions.
package plan

// Descriptors that the guest inherits. Those of mounts follow.
const (
	SocketFD = 3 // connection to the host; see guest/wire
	PlanFD   = 4 // a file with the Plan, as Append writes it
	FirstFD  = 5
)

// Plan is a container.
type Plan struct {
	Hostname string
	// Staging is a directory of the host that every user can reach. The root is
	// built on it, in the container's own mount namespace.
	Staging string
	Root    Root
	// Made: an OCI runtime has made the root, its mounts and the host name. The
	// guest adds directories and files of Root, a proc of the programs' pid
	// namespace, Masked and ReadOnly.
	Made bool
	// Init is a pidfd of the first process of the programs' pid namespace. It makes
	// the root, its mounts, the host name and the loopback interface; when it is
	// done Ready, a pipe, reads to its end. 0: see Made.
	Init   int
	Ready  int
	Mounts []Mount // in this order
	Late   []Link  // links in what was mounted
	// Masked and ReadOnly are paths in the container, made unreadable and
	// unwritable after the mounts (runtime-spec, maskedPaths, readonlyPaths).
	Masked   []string
	ReadOnly []string
	Loopback bool
	// Tasks are descriptors of files of control groups of version 1 that every
	// program joins by; Group is the directory of one of version 2 that it is made
	// in, 0: none.
	Tasks []int
	Group int
	// GroupNamespace gives programs a cgroup namespace (cgroup_namespaces(7)) that
	// has their groups as its roots.
	GroupNamespace bool
	// InitGroups: the first process of programs is in such a namespace.
	InitGroups bool
	// Held are descriptors that are kept open as long as the container lives.
	Held []int
	// Process settles what is the same for all programs.
	Process Process
}

// Root is the root file system.
type Root struct {
	// Overlay makes it of these directories, base first, with a writable layer
	// that goes with the container. Else it is an empty tmpfs.
	Overlay []Layer
	// SetID: set-user-ID files of the overlay work.
	SetID bool
	// Size bounds, in bytes, what is written to the root and to Scratch mounts
	// together.
	Size     int64
	Inodes   int64
	ReadOnly bool
	Dirs     []Dir
	Files    []File
	Links    []Link
}

// Layer is one read-only directory of an overlay.
type Layer struct {
	// FD is a descriptor of a detached mount (open_tree(2)); 0: none.
	FD int
	// Source is a path, if FD is 0.
	Source string
}

// Dir is a directory to be made.
type Dir struct {
	Path string
	Mode uint32 // 0: 0755, and one that is there stays as it is
	// Scratch: it is a writable place of its own, whatever the root is. It is made
	// for a Mount.
	Scratch bool
	UID     int // -1: whoever makes it
	GID     int
}

// File is a small file to be made.
type File struct {
	Path string
	Mode uint32
	Data string
}

// Link is a symbolic link to be made.
type Link struct {
	Path   string
	Target string
}

// Mount is one mount. Its place is made: a file for a Source or FD that is
// one, else a directory.
type Mount struct {
	Target string
	// Scratch is a new writable directory, in the file system that has the
	// root's size.
	Scratch *Dir
	// FD is a descriptor of a detached mount (open_tree(2)); 0: none.
	FD int
	// Source is a path of the host to be bound, with Attr.
	Source string
	// Type, Flags and Data make a new file system (mount(2)).
	Type  string
	Flags uintptr
	Data  string
	// Attr are MOUNT_ATTR flags of a bound Source, set on all below it, or of
	// Scratch.
	Attr uint64
	// Optional: a host that does not allow it goes without.
	Optional bool
}

// Process is what programs are started with.
type Process struct {
	UID  int
	GID  int
	Home string
	// User is who programs are unless they ask for another: looked up in the
	// root's /etc/passwd. Empty: UID, GID and Home.
	User string
	// Image: the root is an image's, and programs find what they would with
	// docker: PATH and HOME if their environment has none, group 0 for users that
	// /etc/passwd does not have.
	Image bool
	// KeepGroups: the user namespace does not allow setgroups(2), and has one
	// user only.
	KeepGroups bool
	Groups     []uint32 // of the default user, besides
	// NoNewPrivs: nothing that a program executes has more rights than it has
	// (PR_SET_NO_NEW_PRIVS(2const)). Without, set-user-ID files of the root work.
	NoNewPrivs bool
	// Bounding are the numbers of the capabilities that such a file can give.
	Bounding    []int
	OOMScoreAdj int // proc_pid_oom_score_adj(5)
	// Filter is a seccomp program: instructions of 8 bytes in host order.
	Filter []byte
	CPUs   int // affinity to this many; 0: all
}

// MachineFile is where the guest finds its Machine, as Append writes it, when it is
// the first process of a virtual machine; and ModuleList a file with the paths of
// kernel modules, one a line, in the order in which they are loaded.
const (
	MachineFile = "/machine"
	ModuleList  = "/modules.list"
)

// Machine is a virtual machine that was booted with the guest as /init of its
// initial RAM file system.
type Machine struct {
	// Port is the name of a virtio serial port, and VsockPort a port of vsock(7)
	// to listen on; one of them is the connection to the host. With both it is
	// the serial port, if the machine has one.
	Port      string
	VsockPort uint32
	// Image is the read-only root of the programs, below a writable layer.
	Image Disk
	// Upper is a disk that has the writable layer. Without, it is memory.
	Upper Disk
	// Plan is the rest. Where it has no Mounts it gets those that every sandbox
	// has from the kernel; where its root has no Size, half of the memory; where
	// its Process has no user, 1000.
	Plan Plan
}

// Disk is a block device, or a directory that stands for one.
type Disk struct {
	Device string // name in /dev: "vda"
	Type   string // "ext4", "erofs"
	Data   string // options (mount(8))
	Path   string // a directory of the initial RAM file system instead
}
