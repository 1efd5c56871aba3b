package bundle

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/axocoatl/isolation/guest/plan"
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

const smallFile = 4 << 10

// HostSystem looks at the host for what [Facts.System] wants.
func HostSystem() []Entry {
	var out []Entry
	for _, dir := range systemDirs {
		info, err := os.Lstat(dir)
		switch {
		case err != nil:
		case info.Mode()&fs.ModeSymlink != 0:
			if to, err := os.Readlink(dir); err == nil {
				out = append(out, Entry{Path: dir, Link: to})
			}
		case info.IsDir():
			out = append(out, Entry{Path: dir})
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
		e := Entry{Path: name, File: !info.IsDir(), NoExec: true}
		if e.File && info.Size() <= smallFile {
			if b, err := os.ReadFile(name); err == nil && len(b) <= smallFile {
				e.Text = string(b)
			}
		}
		out = append(out, e)
	}
	return out
}

// system is a root made of the host's system directories, read-only, with a
// small /etc of its own and writable places in memory.
func (b *Bundle) system(f Facts) {
	for _, e := range f.System {
		if e.Link != "" {
			b.Root.Links = append(b.Root.Links, plan.Link{Path: e.Path, Target: e.Link})
			continue
		}
		if e.Text != "" {
			b.files(plan.File{Path: e.Path, Mode: 0o644, Data: e.Text})
			continue
		}
		m := specs.Mount{Destination: e.Path, Type: "bind", Source: e.Path, Options: []string{"rbind", "rro", "rnosuid", "rnodev"}}
		if e.NoExec {
			m.Options = append(m.Options, "rnoexec")
		}
		b.mount(m)
		b.target(e.Path, e.File)
	}
	u := f.User
	account := func(format string, a ...any) string {
		if u.Name == "" {
			return ""
		}
		return fmt.Sprintf(format, a...)
	}
	b.files(
		plan.File{Path: "/etc/passwd", Mode: 0o644, Data: "root:x:0:0:root:/root:/bin/sh\n" +
			account("%s:x:%d:%d::%s:/bin/sh\n", u.Name, u.UID, u.GID, u.Home) + "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
		plan.File{Path: "/etc/group", Mode: 0o644, Data: "root:x:0:\n" + account("%s:x:%d:\n", u.Name, u.GID) + "nogroup:x:65534:\n"},
		plan.File{Path: "/etc/nsswitch.conf", Mode: 0o644, Data: "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n"},
	)
	if u.Home != "" {
		b.Root.Dirs = append(b.Root.Dirs, b.scratch(plan.Dir{Path: u.Home, Mode: 0o755, UID: u.UID, GID: u.GID}))
	}
	b.Root.Dirs = append(b.Root.Dirs,
		plan.Dir{Path: "/root", Mode: 0o700, UID: -1, GID: -1},
		b.scratch(plan.Dir{Path: "/tmp", Mode: 0o1777, UID: -1, GID: -1}),
		b.scratch(plan.Dir{Path: "/var/tmp", Mode: 0o1777, UID: -1, GID: -1}),
		plan.Dir{Path: "/run", Mode: 0o755, UID: -1, GID: -1},
		plan.Dir{Path: "/srv", Mode: 0o755, UID: -1, GID: -1},
		plan.Dir{Path: "/mnt", Mode: 0o755, UID: -1, GID: -1},
	)
}
