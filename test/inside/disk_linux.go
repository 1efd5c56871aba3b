package inside

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/axocoatl/isolation/image/disk"
)

//go:embed jobs.sh
var jobsScript []byte

// packages are those whose files all tests need, with what they depend on: a
// shell, the usual commands, and Python.
var packages = []string{
	"base-files", "bash", "busybox-static", "coreutils", "dash", "findutils", "grep", "sed", "libacl1", "libattr1", "libc6", "libc-bin", "libgmp10", "libpcre2-8-0",
	"libselinux1", "libssl3", "libtinfo6", "zlib1g", "libexpat1", "libbz2-1.0", "liblzma5", "libffi8", "libuuid1", "util-linux", "mount", "libmount1", "libblkid1", "libsmartcols1", "hostname", "procps",
	"python3-minimal", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib",
	"crun", "runc", "libseccomp2", "libcap2", "libyajl2", "libsystemd0", "libgcrypt20", "libgpg-error0", "libzstd1", "liblz4-1",
}

// Disk is a root disk that is being made.
type Disk = disk.Writer

func (m *machine) makeDisk(ctx context.Context) (err error) {
	bin := filepath.Join(m.dir, "bin")
	for _, sub := range []string{"tests", "programs"} {
		if err := os.MkdirAll(filepath.Join(bin, sub), 0o755); err != nil {
			return err
		}
	}
	list := ""
	for _, j := range m.Jobs {
		list += j.Name + " " + j.Run + "\n"
		if err := run(ctx, "go", "test", "-c", "-vet=off", "-o", filepath.Join(bin, "tests", j.Name), "./"+j.Dir); err != nil {
			return err
		}
	}
	for _, p := range m.Programs {
		if err := run(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(bin, "programs", path.Base(p)), "./"+p); err != nil {
			return err
		}
	}
	f, err := os.Create(m.disk())
	if err != nil {
		return err
	}
	defer f.Close()
	w := disk.Create(f, m.dir, disk.Limits{})
	err = errors.Join(
		System(ctx, w, m.Packages...),
		w.File("/axo/jobs.sh", 0o644, jobsScript),
		w.File("/axo/list", 0o644, []byte(list)),
		w.File("/axo/env", 0o644, []byte(strings.Join(m.Env, "\n")+"\n")),
		w.Tree(bin, "/axo", disk.Same, nil),
	)
	if err != nil {
		return err
	}
	for _, j := range m.Jobs { // tests run in the directory of their package
		target := "/axo/dirs/" + j.Name
		if err := w.Dir(target, 0o755, 0, 0); err != nil {
			return err
		}
		data := filepath.Join(j.Dir, "testdata")
		if _, err := os.Stat(data); err == nil {
			if err := w.Tree(data, target+"/testdata", disk.Same, nil); err != nil {
				return err
			}
		}
	}
	if m.Add != nil {
		if err := m.Add(ctx, w, m.kernel, m.dir); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	// Sandboxes get directories of /tmp by mounts that map owners, which the
	// machine's Linux has for ext4, and not yet for tmpfs.
	if err := os.WriteFile(m.scratch(), nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(m.scratch(), 2<<30); err != nil {
		return err
	}
	return run(ctx, "/sbin/mkfs.ext4", "-q", "-E", "lazy_itable_init=1,root_owner=0:0", m.scratch())
}

// System adds a shell, the usual commands and Python to a disk, and more of this
// host's packages.
func System(ctx context.Context, w *Disk, more ...string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} { // links, where /usr is merged
		if err := w.Path("/"+name, disk.Same); err != nil {
			return err
		}
	}
	for _, p := range append(packages, more...) {
		if err := addPackage(ctx, w, p); err != nil {
			return err
		}
	}
	for _, d := range []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var/tmp", "/mnt", "/etc"} {
		if err := w.Dir(d, 0o755, 0, 0); err != nil {
			return err
		}
	}
	return errors.Join(
		w.Path("/etc/ld.so.cache", disk.Same),
		w.File("/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")),
		w.File("/etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n")),
	)
}

// unneeded is what tests read nothing of.
var unneeded = []string{"/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/lintian"}

// addPackage adds the files of a package that this host has installed.
func addPackage(ctx context.Context, w *disk.Writer, name string) error {
	out, err := exec.CommandContext(ctx, "dpkg", "-L", name).Output()
	if err != nil {
		return fmt.Errorf("package %s of Debian is not installed: %w", name, err)
	}
files:
	for line := range bytes.Lines(out) {
		file := strings.TrimSuffix(string(line), "\n")
		if !path.IsAbs(file) {
			continue
		}
		for _, u := range unneeded {
			if strings.HasPrefix(file, u) {
				continue files
			}
		}
		// Packages name files by links such as /bin.
		dir, err := filepath.EvalSymlinks(path.Dir(file))
		if err != nil {
			continue // a file that the administrator removed
		}
		file = path.Join(dir, path.Base(file))
		if file == "/" || w.Has(file) {
			continue
		}
		if err := w.Path(file, disk.Same); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
