package bundle

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// GuestPath is where a container that is made by a runtime has axo-guest.
const GuestPath = "/.axo-guest"

// guestCapabilities are what the first process needs inside the user namespace:
// a pid namespace for programs, and its proc, and to enter it; the interface lo;
// to hide paths; to be another user, and to give up what programs do not have. The guest keeps
// less when it has done the former.
var guestCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE",
}

// hostedVersion is the oldest version that has all of a Hosted document: old
// runtimes refuse a later one.
const hostedVersion = "1.0.2"

// Hosted returns the document for a runtime that starts axo-guest, which is at
// the path guest of the bundle, as the first process. It differs in what the
// guest itself does for each program: the user, the capabilities, the limits of
// a process, the seccomp filter. Masked and read-only paths are the guest's
// too, as it mounts another proc. The limits of the container's control group
// are those of a group that the guest's programs join, and so is the root of the
// cgroup namespace that the guest makes for them.
func (b *Bundle) Hosted(guest string) *specs.Spec {
	c := *b.Config
	c.Version = hostedVersion
	// What a program may get must not be out of reach for its parent.
	bounding := slices.Concat(guestCapabilities, b.Config.Process.Capabilities.Bounding)
	slices.Sort(bounding)
	bounding = slices.Compact(bounding)
	c.Process = &specs.Process{
		Args: []string{GuestPath}, Env: []string{"GOMAXPROCS=1", "PATH=/"}, Cwd: "/", NoNewPrivileges: b.Config.Process.NoNewPrivileges,
		Capabilities: &specs.LinuxCapabilities{Bounding: bounding, Effective: bounding, Permitted: bounding},
	}
	l := *b.Config.Linux
	l.Namespaces = slices.DeleteFunc(slices.Clone(l.Namespaces), func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	l.Resources, l.Seccomp, l.MaskedPaths, l.ReadonlyPaths = nil, nil, nil, nil
	c.Linux = &l
	c.Mounts = append(slices.Clone(c.Mounts), specs.Mount{
		Destination: GuestPath, Type: "bind", Source: guest, Options: []string{"bind", "ro", "nosuid", "nodev"},
	})
	return &c
}
