package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// calls makes system calls that no sandbox needs. With all rights each of them
// fails for its arguments, or does nothing that lasts; a wall is met before.
func calls() {
	nowhere := bytePtr("/axo-escape-nowhere")
	empty := bytePtr("")
	var zero [256]byte
	buf := uintptr(unsafe.Pointer(&zero[0]))
	const bad = ^uintptr(0)
	for _, c := range []struct {
		name string
		nr   uintptr
		args [6]uintptr
	}{
		{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{0, 0, 0, bad}},
		{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{0, 0, empty}},
		{"finit_module", unix.SYS_FINIT_MODULE, [6]uintptr{bad, empty, 0}},
		{"delete_module", unix.SYS_DELETE_MODULE, [6]uintptr{nowhere, unix.O_NONBLOCK}},
		{"bpf", unix.SYS_BPF, [6]uintptr{0, buf, 128}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{0, 0, bad, bad, 0}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{0xffff}},
		{"keyctl", unix.SYS_KEYCTL, [6]uintptr{0, ^uintptr(2), 0}},
		{"add_key", unix.SYS_ADD_KEY, [6]uintptr{0, 0, 0, 0, 0}},
		{"request_key", unix.SYS_REQUEST_KEY, [6]uintptr{0, 0, 0, 0}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{0, buf}},
		{"mount", unix.SYS_MOUNT, [6]uintptr{empty, nowhere, empty, unix.MS_BIND}},
		{"umount2", unix.SYS_UMOUNT2, [6]uintptr{nowhere, 0}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{nowhere, nowhere}},
		{"chroot", unix.SYS_CHROOT, [6]uintptr{nowhere}},
		{"setns", unix.SYS_SETNS, [6]uintptr{bad, 0}},
		{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{bad, nowhere, unix.OPEN_TREE_CLONE}},
		{"fsopen", unix.SYS_FSOPEN, [6]uintptr{nowhere, 0}},
		{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{bad, empty, bad, empty, 0}},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, [6]uintptr{bad, nowhere, 0, buf, 32}},
		{"reboot", unix.SYS_REBOOT, [6]uintptr{1, 2, 3, 0}},
		{"swapon", unix.SYS_SWAPON, [6]uintptr{nowhere, 0}},
		{"swapoff", unix.SYS_SWAPOFF, [6]uintptr{nowhere}},
		{"acct", unix.SYS_ACCT, [6]uintptr{nowhere}},
		{"clock_settime", unix.SYS_CLOCK_SETTIME, [6]uintptr{unix.CLOCK_REALTIME, 0}},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, [6]uintptr{1, 0}},
		{"syslog", unix.SYS_SYSLOG, [6]uintptr{3, 0, 0}},
		{"quotactl", unix.SYS_QUOTACTL, [6]uintptr{0x800002 << 8, nowhere, 0, buf}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{bad, 0, 0}},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, [6]uintptr{bad, 0}},
		{"sethostname", unix.SYS_SETHOSTNAME, [6]uintptr{buf, bad}},
		{"setdomainname", unix.SYS_SETDOMAINNAME, [6]uintptr{buf, bad}},
	} {
		_, _, errno := syscall.Syscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		switch {
		case errno == unix.ENOSYS && target.Control:
			absent(c.name, "this kernel has no such call")
		case errno != 0 && refused(errno):
			held(c.name, errno)
		default:
			escaped(c.name, "came through the wall (%v)", errno)
		}
	}
	socket("packet socket", unix.AF_PACKET, unix.SOCK_RAW, 0)
	socket("raw socket", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	socket("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	old, _, _ := syscall.Syscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
	_, _, errno := syscall.Syscall(unix.SYS_PERSONALITY, old|0x0400000, 0, 0) // READ_IMPLIES_EXEC
	if errno != 0 {
		held("personality", errno)
	} else {
		escaped("personality", "memory that is read can be executed")
	}
}

func socket(name string, family, kind, proto int) {
	fd, err := unix.Socket(family, kind, proto)
	switch {
	case err == nil:
		unix.Close(fd)
		escaped(name, "made")
	case target.Control && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT)):
		absent(name, err)
	default:
		held(name, err)
	}
}

func bytePtr(s string) uintptr {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	keep = append(keep, p)
	return uintptr(unsafe.Pointer(p))
}

var keep []*byte // memory that is only known as a number

// namespaces makes new ones, in which a program would have all rights.
func namespaces() {
	for name, flag := range map[string]uintptr{"user": unix.CLONE_NEWUSER, "user and mount": unix.CLONE_NEWUSER | unix.CLONE_NEWNS} {
		cmd := exec.Command("/proc/self/exe", "noop")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flag}
		verdict("clone "+name, cmd.Run())
	}
	// clone3 with the new ones; its arguments are in memory, where no filter sees
	// them.
	args := [11]uint64{0: unix.CLONE_NEWUSER, 4: uint64(unix.SIGCHLD)}
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno == 0 && pid == 0 {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	if errno != 0 {
		held("clone3 user", errno)
	} else {
		_, _ = unix.Wait4(int(pid), nil, 0, nil)
		escaped("clone3 user", "process %d", pid)
	}
	// At last: nothing can be started after that of the pid namespace.
	for name, flag := range map[string]int{
		"mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP,
	} {
		verdict("unshare "+name, unix.Unshare(flag))
	}
}

// cgroup is CVE-2022-0492: with a hierarchy of version 1 mounted, its
// release_agent is a program that the kernel starts on the host.
func cgroup() {
	dir := "/tmp/axo-escape-cgroup"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		dir = "/dev/shm"
	} else {
		defer os.Remove(dir)
	}
	err := unix.Mount("none", dir, "cgroup", 0, "none,name=axoescape")
	if err != nil {
		if target.Control && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)) {
			absent("release_agent", err)
		} else {
			held("release_agent", err)
		}
	} else {
		fd, err := unix.Open(dir+"/release_agent", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		verdict("release_agent", err)
	}
	// And of what is mounted already.
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		held("mountinfo", err)
		return
	}
	found := false
	for line := range strings.SplitSeq(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) > 8 && strings.Contains(line, " - cgroup") {
			var st unix.Statfs_t
			if unix.Access(f[4], unix.W_OK) == nil && unix.Statfs(f[4], &st) == nil && st.Flags&unix.ST_RDONLY == 0 {
				found = true
			}
		}
	}
	if found {
		escaped("writable cgroup mount", "there is one")
	} else {
		held("writable cgroup mount", "there is none")
	}
	if target.Control {
		leave, err := joinGroup()
		if err != nil {
			absent("name of a control group", err)
			return
		}
		defer leave()
	}
	b, err = os.ReadFile("/proc/self/cgroup")
	if err != nil {
		held("name of a control group", err)
		return
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[2] != "/" {
			escaped("name of a control group", "%s", strings.TrimSpace(line))
			return
		}
	}
	held("name of a control group", "all are /")
}

// joinGroup moves this process into a group of its own, in a hierarchy that is
// mounted: a program of the host is in one that has a name.
func joinGroup() (leave func(), err error) {
	err = unix.ENOENT
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"} {
		dir := fmt.Sprintf("%s/axo-escape-%d", top, os.Getpid())
		if _, serr := os.Stat(top + "/cgroup.procs"); serr != nil {
			continue
		}
		if err = os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		if err = os.WriteFile(dir+"/cgroup.procs", []byte("0"), 0); err == nil {
			return func() {
				_ = os.WriteFile(top+"/cgroup.procs", []byte("0"), 0)
				_ = os.Remove(dir)
			}, nil
		}
		_ = os.Remove(dir)
	}
	return nil, err
}
