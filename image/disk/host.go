package disk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
)

// hostPackages are those that a disk of the host has beside the essential ones,
// where the host has them.
var hostPackages = []string{"python3", "busybox-static", "ca-certificates", "procps", "mount", "less", "jq", "xz-utils", "bzip2", "netbase"}

// Host adds the host's system: where dpkg manages it, the files of its essential
// packages, of Python, and of more, with all that they depend on; else /usr
// without documents. Its /etc, users and data are not taken.
func (w *Writer) Host(ctx context.Context, more ...string) error {
	for _, name := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		// Links, where /usr is merged. What is a directory comes with its files.
		if info, err := os.Lstat(name); err == nil && info.Mode().Type() == fs.ModeSymlink && !w.Has(name) {
			if err := w.Path(name, Same); err != nil {
				return err
			}
		}
	}
	for _, d := range []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/home", "/mnt", "/etc", "/var/tmp", "/srv", "/opt"} {
		if err := w.Dir(d, 0o755, 0, 0); err != nil {
			return err
		}
	}
	for _, name := range []string{"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/mime.types", "/etc/protocols", "/etc/services", "/etc/os-release", "/etc/debian_version"} {
		if err := w.host(name); err != nil {
			return err
		}
	}
	for _, name := range []string{"/etc/ssl/certs", "/etc/alternatives", "/etc/ld.so.conf.d", "/etc/terminfo"} {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			if err := w.Tree(name, name, Same, nil); err != nil {
				return err
			}
		}
	}
	if pythons, err := filepath.Glob("/etc/python3*"); err == nil {
		for _, name := range pythons {
			if err := w.Tree(name, name, Same, nil); err != nil {
				return err
			}
		}
	}
	if _, err := exec.LookPath("dpkg-query"); err == nil {
		return w.debian(ctx, more)
	}
	if len(more) > 0 {
		return &isolation.UnsupportedError{Feature: "packages by name", Need: "a system with dpkg"}
	}
	return w.Tree("/usr", "/usr", Same, func(name string, _ fs.DirEntry) bool { return w.Has(name) && name != "/usr" || unneeded(name) })
}

// unneeded is what no program needs.
func unneeded(name string) bool {
	for _, dir := range []string{"/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/info", "/usr/share/lintian", "/usr/src", "/usr/lib/debug"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// host adds a file of the host, if it is there and on no disk yet.
func (w *Writer) host(name string) error {
	if w.Has(name) {
		return nil
	}
	err := w.Path(name, Same)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// debian adds the files of packages.
func (w *Writer) debian(ctx context.Context, more []string) error {
	names, err := closure(ctx, more)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "dpkg-query", append([]string{"-L"}, names...)...).Output()
	if err != nil {
		return fmt.Errorf("dpkg-query -L: %w", err)
	}
	dirs := map[string]string{}
	for line := range bytes.Lines(out) {
		file := strings.TrimSuffix(string(line), "\n")
		if !path.IsAbs(file) || unneeded(file) || strings.HasPrefix(file, "/etc/") || strings.HasPrefix(file, "/var/") {
			continue
		}
		// Packages name files by links such as /bin.
		dir, ok := dirs[path.Dir(file)]
		if !ok {
			if dir, err = filepath.EvalSymlinks(path.Dir(file)); err != nil {
				continue // a file that the administrator removed
			}
			dirs[path.Dir(file)] = dir
		}
		file = path.Join(dir, path.Base(file))
		if file == "/" {
			continue
		}
		if err := w.host(file); err != nil {
			return err
		}
	}
	// What packages make when they are installed: libraries' links, alternatives.
	return w.links("/usr/bin", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
}

// links adds links of directories that lead to what the disk has.
func (w *Writer) links(dirs ...string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			if e.Type() != fs.ModeSymlink || w.Has(name) {
				continue
			}
			if to, err := filepath.EvalSymlinks(name); err == nil && w.Has(to) {
				if err := w.host(name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// closure lists installed packages: the essential ones, hostPackages, more, and
// what they depend on.
func closure(ctx context.Context, more []string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}\t${binary:Package}\t${Package}\t${Essential}\t${Pre-Depends}, ${Depends}\t${Provides}\n").Output()
	if err != nil {
		return nil, fmt.Errorf("dpkg-query -W: %w", err)
	}
	type pkg struct {
		name    string
		depends string
	}
	by := map[string]pkg{} // by name, and by what it provides
	provided := map[string]pkg{}
	var todo []string
	s := bufio.NewScanner(bytes.NewReader(out))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		f := strings.Split(s.Text(), "\t")
		if len(f) != 6 || f[0] != "installed" {
			continue
		}
		p := pkg{f[1], f[4]}
		by[f[2]] = p
		for v := range strings.SplitSeq(f[5], ",") {
			if v, _, _ = strings.Cut(strings.TrimSpace(v), " "); v != "" {
				provided[v] = p
			}
		}
		if f[3] == "yes" {
			todo = append(todo, f[2])
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	for _, n := range more {
		if _, ok := by[n]; !ok {
			return nil, fmt.Errorf("package %s is not installed on this host: %w", n, isolation.ErrNotFound)
		}
	}
	todo = append(append(todo, hostPackages...), more...)
	done := map[string]bool{}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		p, ok := by[n]
		if !ok {
			if p, ok = provided[n]; !ok {
				continue
			}
		}
		if done[p.name] {
			continue
		}
		done[p.name] = true
		for d := range strings.SplitSeq(p.depends, ",") {
			for alt := range strings.SplitSeq(d, "|") { // those of them that are installed
				alt, _, _ = strings.Cut(strings.TrimSpace(alt), " ")
				alt, _, _ = strings.Cut(alt, ":")
				if alt != "" {
					todo = append(todo, alt)
				}
			}
		}
	}
	names := make([]string, 0, len(done))
	for n := range done {
		names = append(names, n)
	}
	slices.Sort(names)
	return names, nil
}
