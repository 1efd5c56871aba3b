package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var thisProcess = sync.OnceValues(func() (owner, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return owner{}, err
	}
	start, err := startTime(os.Getpid())
	return owner{strings.TrimSpace(string(boot)), os.Getpid(), start}, err
})

// OursAlone reports an error unless this process's user owns dir and nobody else
// can write to it.
func OursAlone(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, not to this process's %d", dir, st.Uid, os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s has mode %v, so others can write to it: chmod go-w %s", dir, info.Mode().Perm(), dir)
	}
	return nil
}

// startTime reads field 22 of proc_pid_stat(5). The second field, the name of
// the program, may hold spaces and parentheses.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), ") ")
	fields := strings.Fields(rest)
	const at = 22 - 3
	if !ok || len(fields) <= at {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	return strconv.ParseUint(fields[at], 10, 64)
}

// killProcess kills exactly the process that was started then: the descriptor
// is taken first, and the start time compared after.
func killProcess(pid int, start uint64) (bool, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return false, nil
	} else if err != nil {
		return false, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if now, err := startTime(pid); err != nil || now != start {
		return false, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return false, os.NewSyscallError("pidfd_send_signal", err)
	}
	return true, nil
}

// removeGroup kills what is in a control group and removes it. The path must be
// one that this module makes.
func removeGroup(path string) (bool, error) {
	if !isGroup(path) {
		return false, fmt.Errorf("%q is not a control group of this program", path)
	}
	var err error
	for wait := time.Millisecond; wait < 2*time.Second; wait *= 2 {
		if err = os.Remove(path); err == nil {
			return true, nil
		} else if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		killMembers(path)
		thawGroup(path)
		time.Sleep(wait)
	}
	return false, err
}

func isGroup(path string) bool {
	return strings.HasPrefix(path, "/sys/fs/cgroup/") && filepath.Clean(path) == path && strings.HasPrefix(filepath.Base(path), "axo-")
}

func killMembers(path string) {
	b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil {
		return
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// freezerState is of groups of version 1 whose members can stand still.
const freezerState = "freezer.state"

// letDie kills the members of a group of version 1 that stands still: a process that is
// frozen there does not die of a signal before it is thawed. Of another group it does
// nothing.
func letDie(path string) {
	if _, err := os.Lstat(filepath.Join(path, freezerState)); err == nil && isGroup(path) {
		killMembers(path)
		thawGroup(path)
	}
}

func thawGroup(path string) {
	f, err := os.OpenFile(filepath.Join(path, freezerState), os.O_WRONLY, 0)
	if err != nil {
		return // it is of another kind
	}
	_, _ = f.WriteString("THAWED") // what stays frozen keeps the group, which is told of
	f.Close()
}
