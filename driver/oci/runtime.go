package oci

// A runtimeKind is what there is to know about a runtime: a program with the
// command line of runc, as all of them have it. It makes containers from a
// bundle (runtime-spec, runtime-linux.md and bundle.md).
type runtimeKind struct {
	name string
	// global are arguments before the command.
	global []string
	// noUnified: it refuses a host whose control groups are of both versions.
	// It does not get to see those of version 2.
	noUnified bool
	// ownGroups: it makes control groups for the container, which cannot be
	// turned off. They bound nothing: what the programs run in is ours.
	ownGroups bool
	// piped: it passes no descriptors on. The guest speaks on its standard input
	// and output, and all of the sandbox is in its control group.
	piped   bool
	session []string // arguments for the profile session
	wall    string   // what it puts between program and host that others do not
	get     string   // how a person gets it
}

// runtimeKinds are the engines of this tier beside the builtin one, by
// preference.
var runtimeKinds = []runtimeKind{
	{
		name: "crun", global: []string{"--cgroup-manager=disabled"}, noUnified: true,
		get: "crun in PATH (apt install crun, dnf install crun)",
	},
	{
		name: "youki", ownGroups: true,
		get: "youki in PATH (cargo install youki)",
	},
	{
		name: "runc", ownGroups: true,
		get: "runc in PATH (apt install runc, dnf install runc)",
	},
	{
		name: "runsc", piped: true, wall: "gVisor: system calls end in a kernel of its own, in user space",
		global:  []string{"--ignore-cgroups", "--network=none", "--overlay2=none"},
		session: []string{"--allow-suid", "--net-raw"},
		get:     "runsc in PATH (gVisor, https://gvisor.dev/docs/user_guide/install)",
	},
}

// Runtimes lists the names that Config.Engine may have beside "builtin", in
// order of preference.
func Runtimes() []string {
	var out []string
	for _, k := range runtimeKinds {
		out = append(out, k.name)
	}
	return out
}

func runtimeNamed(name string) (runtimeKind, bool) {
	for _, k := range runtimeKinds {
		if k.name == name {
			return k, true
		}
	}
	return runtimeKind{}, false
}
