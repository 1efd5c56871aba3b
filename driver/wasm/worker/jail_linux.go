package worker

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/guest/wire"
	"github.com/axocoatl/isolation/internal/landlock"
)

// cpuTime returns the CPU time of the process.
func cpuTime() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// runJail is what a worker is restricted by. The order matters: capabilities
// and no_new_privs first, then Landlock, which needs the directories, then
// seccomp, which forbids the calls that the others made. Each is put over all
// threads.
type runJail struct {
	walls, missing []string
}

// newRunJail restricts a run worker to what loading its module needs: its
// native code, to read, and its mounts.
func newRunJail(native *os.File, dirs []*os.File, mounts []wire.LoadMount) (runJail, error) {
	allow := []landlockDir{{native, false}}
	for i, m := range mounts {
		allow = append(allow, landlockDir{dirs[i], !m.ReadOnly})
	}
	return newJail(allow, len(mounts) > 0)
}

// jailCompile restricts a compile worker to its private directory.
func jailCompile(out *os.File) (runJail, error) {
	return newJail([]landlockDir{{out, true}}, false)
}

func newJail(dirs []landlockDir, keepFileCaps bool) (runJail, error) {
	var j runJail
	if err := dropCapabilities(keepFileCaps); err != nil {
		return j, fmt.Errorf("capabilities: %w", err)
	}
	j.walls = append(j.walls, "capabilities: dropped, no_new_privs")
	detail, err := restrict(dirs)
	switch {
	case err == nil:
		j.walls = append(j.walls, "landlock: "+detail)
	case errors.Is(err, landlock.ErrMissing):
		// The other walls stand: without mounts, seccomp leaves no way to
		// open a file at all.
		j.missing = append(j.missing, "landlock: "+err.Error())
	default:
		return j, err
	}
	if err := seccomp(true); err != nil {
		return j, err
	}
	return j, nil
}

// tighten takes away what was needed to load.
func (j *runJail) tighten(files bool) error {
	if !files {
		if err := seccomp(false); err != nil {
			return err
		}
		j.walls = append(j.walls, "seccomp: allow-list without files, processes or new sockets")
		return nil
	}
	j.walls = append(j.walls, "seccomp: allow-list without processes or new sockets")
	return nil
}

func (j *runJail) report() (walls, missing []string) { return j.walls, j.missing }

// fileCaps let a privileged caller's module use a mount as the caller could.
const fileCaps = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER

// dropCapabilities takes all capabilities from every thread, for good. With
// keepFileCaps those of fileCaps stay, if they were there.
func dropCapabilities(keepFileCaps bool) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	if err := allThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return err
	}
	if err := allThreadsPrctl(unix.PR_SET_DUMPABLE, 0, 0); err != nil {
		return err
	}
	// The bounding set is left: it matters at exec, where no_new_privs already
	// grants nothing, and to empty it takes 41 calls that stop every thread.
	var keep uint32
	if keepFileCaps {
		keep = fileCaps & have[0].Effective
	}
	want := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&want[0])), 0)
	if e != 0 {
		return allThreadsError("capset", e)
	}
	return nil
}

func allThreadsPrctl(op, arg2, arg3 uintptr) error {
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, op, arg2, arg3); e != 0 && e != syscall.EINVAL {
		return allThreadsError("prctl", e)
	}
	return nil
}
