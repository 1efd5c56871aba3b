package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processes looks for a process of the host, and reaches for it and for the
// first process of the sandbox.
func processes() {
	seen := false
	for _, p := range glob("/proc/[0-9]*/cmdline") {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(target.Marker)) && filepath.Dir(p) != fmt.Sprint("/proc/", os.Getpid()) && !bytes.Contains(b, []byte("processes")) {
			seen = true
		}
	}
	if seen {
		escaped("see the host's processes", "by /proc")
	} else {
		held("see the host's processes", "none is there")
	}
	mine := func() bool { // a process of that number that is the sandbox's own
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", target.PID))
		return err == nil && !bytes.Contains(b, []byte(target.Marker))
	}()
	if mine {
		held("signal", "the number is another's")
	} else {
		verdict("signal", unix.Kill(target.PID, 0))
		fd, err := unix.PidfdOpen(target.PID, 0)
		if err == nil {
			unix.Close(fd)
		}
		verdict("pidfd_open", err)
		attach("ptrace", target.PID)
		open("memory", fmt.Sprintf("/proc/%d/mem", target.PID))
	}
	// The first process has more rights than its programs. The control has
	// nothing like it, so the process that the test started stands for it.
	first := 1
	if target.Control {
		first = target.PID
	}
	if !target.Control { // that one is traced already
		attach("ptrace of the first process", first)
	}
	open("memory of the first process", fmt.Sprintf("/proc/%d/mem", first))
	_, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/", first))
	verdict("root of the first process", err)
	// Who may list them may not follow them yet.
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", first))
	if err == nil {
		err = unix.EACCES
	}
	for _, name := range list {
		if _, rerr := os.Readlink(name); rerr == nil {
			err = nil
		}
	}
	verdict("descriptors of the first process", err)
	if fd, err := unix.PidfdOpen(first, 0); err != nil {
		held("take a descriptor of the first process", err)
	} else {
		got, err := unix.PidfdGetfd(fd, 0, 0)
		if err == nil {
			unix.Close(got)
		}
		unix.Close(fd)
		verdict("take a descriptor of the first process", err)
	}
	var local [1]unix.Iovec
	b := make([]byte, 1)
	local[0].Base, local[0].Len = &b[0], 1
	_, err = unix.ProcessVMReadv(first, local[:], []unix.RemoteIovec{{Base: 0x400000, Len: 1}}, 0)
	if err != nil && refused(err) {
		held("process_vm_readv of the first process", err)
	} else {
		escaped("process_vm_readv of the first process", "%v", err)
	}
}

func attach(thing string, pid int) {
	err := unix.PtraceSeize(pid)
	if err == nil {
		_ = unix.PtraceDetach(pid)
	}
	verdict(thing, err)
}

func open(thing, name string) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	verdict(thing, err)
}

// sockets dials what listens on the host: a socket file, and one of the abstract
// names that belong to a network namespace (CVE-2020-15257).
func sockets() {
	for thing, name := range map[string]string{"socket file": target.Socket, "abstract socket": "@" + target.Abstract} {
		c, err := net.DialTimeout("unix", name, time.Second)
		if err == nil {
			c.Close()
		}
		verdict(thing, err)
	}
	b, err := os.ReadFile("/proc/net/unix")
	if err == nil && bytes.Contains(b, []byte(target.Abstract)) {
		escaped("names of sockets", "in /proc/net/unix")
	} else {
		held("names of sockets", "none of the host is there")
	}
	for _, name := range []string{"/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/crio/crio.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"} {
		c, err := net.DialTimeout("unix", name, time.Second)
		if err == nil {
			c.Close()
			escaped(name, "connected")
		} else if target.Control {
			absent(name, err)
		} else {
			held(name, err)
		}
	}
}

// network dials the host by its loopback interface, and the address where clouds
// give away credentials. The control leaves that one alone.
func network() {
	for _, a := range []string{"127.0.0.1", "localhost"} {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(a, strconv.Itoa(target.TCP)), time.Second)
		if err == nil {
			c.Close()
		}
		verdict("tcp to "+a, err)
	}
	ifs, err := net.Interfaces()
	names := []string{}
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback == 0 && (i.Flags&net.FlagUp != 0 || target.Control) {
			names = append(names, i.Name)
		}
	}
	switch {
	case err != nil:
		held("interfaces", err)
	case len(names) > 0:
		escaped("interfaces", "%v", names)
	case target.Control:
		absent("interfaces", "the host has the loopback interface alone")
	default:
		held("interfaces", "loopback alone")
	}
	if target.Control {
		absent("metadata service", "not asked from here")
		return
	}
	c, err := net.DialTimeout("tcp", "169.254.169.254:80", time.Second)
	switch {
	case err == nil:
		c.Close()
		escaped("metadata service", "connected")
	case errors.Is(err, unix.ENETUNREACH) || refused(err):
		held("metadata service", err)
	default:
		// A time-out would mean that something was sent.
		escaped("metadata service", "%v", err)
	}
}

// ipc reaches for shared memory of the host.
func ipc() {
	id, err := unix.SysvShmGet(target.SHM, 0, 0)
	if err == nil {
		_, err = unix.SysvShmAttach(id, 0, unix.SHM_RDONLY)
	}
	verdict("shared memory", err)
}

// rights are what /proc says that a program has.
func rights() {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		held("status", err)
		return
	}
	field := map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok {
			field[k] = strings.TrimSpace(v)
		}
	}
	for _, c := range []struct{ name, shut string }{
		{"CapEff", "0000000000000000"}, {"CapPrm", "0000000000000000"}, {"CapBnd", "0000000000000000"}, {"NoNewPrivs", "1"}, {"Seccomp", "2"},
	} {
		if field[c.name] == c.shut {
			held(c.name, field[c.name])
		} else {
			escaped(c.name, "%s", field[c.name])
		}
	}
	// Back to what it was before: without set-uid there is no way.
	b, err = os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	switch {
	case err != nil:
		held("uid 0 of the host", err)
	case len(f) == 3 && f[0] == "0" && f[1] == "0":
		escaped("uid 0 of the host", "user 0 is the host's")
	default:
		held("uid 0 of the host", strings.Join(f, " "))
	}
}

// mounts looks for what is mounted of the host and can be written.
func mounts() {
	for _, dir := range []string{"/usr", "/bin", "/lib", "/etc", "/proc/sys", "/sys", "/opt/escape"} {
		name := dir + "/axo-escape-write"
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err == nil {
			unix.Close(fd)
			_ = unix.Unlink(name)
		}
		if target.Control && (dir == "/proc/sys" || dir == "/sys" || dir == "/opt/escape" || errors.Is(err, unix.ENOENT)) {
			absent("write to "+dir, "nobody makes files there")
			continue
		}
		verdict("write to "+dir, err)
	}
}

// terminal puts input into the terminal that it was started on (CVE-2017-5226,
// CVE-2019-10063), which whoever started it then reads.
func terminal() {
	for _, c := range "x\n" {
		if err := unix.IoctlSetPointerInt(0, unix.TIOCSTI, int(c)); err != nil {
			held("TIOCSTI", err)
			return
		}
	}
	escaped("TIOCSTI", "done")
}
