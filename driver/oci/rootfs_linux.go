package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/plan"
)

// What a program sees of itself in the host's system directories.
const (
	userName = "user"
	userID   = 1000
	homeDir  = "/home/user"
)

// systemDirs are the host's directories of programs and libraries. Where they
// are links, as on systems with a merged /usr, they are links inside.
var systemDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// systemFiles are what programs need of the host's /etc. Nothing of it is
// secret, and nothing else of /etc is there.
var systemFiles = []string{
	"/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
	"/etc/ca-certificates", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/localtime", "/etc/timezone", "/etc/mime.types",
	"/etc/magic", "/etc/protocols", "/etc/services", "/etc/terminfo", "/etc/inputrc", "/etc/os-release", "/etc/debian_version",
	"/etc/fonts", "/etc/perl", "/etc/gai.conf", "/etc/locale.alias",
}

// hostRoot is a root made of the host's system directories, read-only, with a
// small /etc of its own and writable places in memory.
func hostRoot(p *plan.Plan) {
	p.Root.ReadOnly = true
	for _, dir := range systemDirs {
		info, err := os.Lstat(dir)
		switch {
		case err != nil:
		case info.Mode()&fs.ModeSymlink != 0:
			if to, err := os.Readlink(dir); err == nil {
				p.Root.Links = append(p.Root.Links, plan.Link{Path: dir, Target: to})
			}
		case info.IsDir():
			p.Mounts = append(p.Mounts, plan.Mount{Source: dir, Target: dir, Attr: readOnlyBind})
		}
	}
	files := systemFiles
	if more, err := filepath.Glob("/etc/python3*"); err == nil {
		files = append(slices.Clone(files), more...)
	}
	for _, name := range files {
		info, err := os.Stat(name) // through links: what it leads to is shown
		if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
			continue
		}
		p.Mounts = append(p.Mounts, plan.Mount{Source: name, Target: name, File: !info.IsDir(), Attr: readOnlyBind | unix.MOUNT_ATTR_NOEXEC})
	}
	uid, gid := p.Process.UID, p.Process.GID
	p.Root.Files = append(p.Root.Files,
		plan.File{Path: "/etc/passwd", Mode: 0o644, Data: fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\n%s:x:%d:%d::%s:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
			userName, uid, gid, homeDir)},
		plan.File{Path: "/etc/group", Mode: 0o644, Data: fmt.Sprintf("root:x:0:\n%s:x:%d:\nnogroup:x:65534:\n", userName, gid)},
		plan.File{Path: "/etc/nsswitch.conf", Mode: 0o644, Data: "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n"},
		plan.File{Path: "/etc/resolv.conf", Mode: 0o644},
	)
	p.Root.Dirs = append(p.Root.Dirs,
		plan.Dir{Path: homeDir, Mode: 0o755, Scratch: true, UID: uid, GID: gid},
		plan.Dir{Path: "/root", Mode: 0o700},
		plan.Dir{Path: "/tmp", Mode: 0o1777, Scratch: true, UID: -1, GID: -1},
		plan.Dir{Path: "/var/tmp", Mode: 0o1777, Scratch: true, UID: -1, GID: -1},
		plan.Dir{Path: "/run", Mode: 0o755, UID: -1, GID: -1},
		plan.Dir{Path: "/srv", Mode: 0o755, UID: -1, GID: -1},
		plan.Dir{Path: "/mnt", Mode: 0o755, UID: -1, GID: -1},
	)
	p.Process.Home = homeDir
}

// readOnlyBind are the attributes of what a container sees of the host.
const readOnlyBind = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// devices are those of the host that a container has (runtime-spec,
// config-linux.md, "Default Devices").
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// kernelFiles adds what every container has from the kernel.
func kernelFiles(p *plan.Plan) {
	const restricted = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	p.Mounts = append(p.Mounts,
		plan.Mount{Target: "/proc", Type: "proc"},
		plan.Mount{Target: "/sys", Type: "sysfs", Flags: restricted | unix.MS_RDONLY, Optional: true},
		plan.Mount{Target: "/dev", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "mode=755,size=65536"},
		plan.Mount{Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620"},
		plan.Mount{Target: "/dev/mqueue", Type: "mqueue", Flags: restricted, Optional: true},
	)
	for _, d := range devices {
		p.Mounts = append(p.Mounts, plan.Mount{
			Source: "/dev/" + d, Target: "/dev/" + d, File: true, Attr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		})
	}
	p.Late = []plan.Link{
		{Path: "/dev/ptmx", Target: "pts/ptmx"}, {Path: "/dev/fd", Target: "/proc/self/fd"}, {Path: "/dev/stdin", Target: "/proc/self/fd/0"},
		{Path: "/dev/stdout", Target: "/proc/self/fd/1"}, {Path: "/dev/stderr", Target: "/proc/self/fd/2"},
	}
	p.Shared = []plan.Dir{{Path: "/dev/shm", Mode: 0o1777, Scratch: true, UID: -1, GID: -1}}
	// As docker and containerd have them.
	p.Masked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	p.ReadOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"}
}

// staging is a directory of the host that every user can reach and that nothing
// below sources is in.
func staging(sources []string) (string, error) {
	for _, dir := range []string{"/mnt", "/media", "/srv", "/opt", "/run", "/var/tmp", "/tmp"} {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || info.Mode().Perm()&0o5 != 0o5 {
			continue
		}
		if !slices.ContainsFunc(sources, func(s string) bool { return s == dir || strings.HasPrefix(s, dir+"/") }) {
			return dir, nil
		}
	}
	return "", errors.New("the host has none of /mnt, /media, /srv, /opt, /run and /tmp to build a root on that is not shared with the sandbox")
}
