package wasm

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

const (
	// byPath: files go to workers as descriptors.
	byPath = false
	// imagesWork: memory images are mapped copy-on-write.
	imagesWork = true
	// openNonblock keeps an open of a FIFO from waiting.
	openNonblock = unix.O_NONBLOCK
)

// fileID tells whether a file is the one that was read before.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime time.Time
}

func identify(info fs.FileInfo) fileID {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}
	}
	//nolint:unconvert // Dev has 32 bits on some architectures
	return fileID{uint64(st.Dev), st.Ino, st.Size, time.Unix(st.Mtim.Unix()), time.Unix(st.Ctim.Unix())}
}

// settleTime is how old a change must be before the times of a file are trusted
// to differ at the next one: the kernel's clock for them has ticks of a few
// milliseconds.
const settleTime = 100 * time.Millisecond

// settled reports whether the same id later will mean the same content.
func (id fileID) settled() bool { return id.ino != 0 && time.Since(id.ctime) > settleTime }

// newPrivateFile returns an empty file without a name.
func newPrivateFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// discard closes a file of newPrivateFile.
func discard(f *os.File) { f.Close() }

// checkPrivate insists that a directory is ours alone: native code from it is
// run.
func checkPrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, not to this process's %d", dir, st.Uid, os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s has mode %v; others must not have access: chmod 700 %s", dir, info.Mode().Perm(), dir)
	}
	return nil
}

// hostMemory returns the memory of the host in bytes.
func hostMemory() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 4 << 30
	}
	return int64(si.Totalram) * int64(si.Unit)
}

var cpuTimeEnforcement = isolation.Enforcement{
	Limit: isolation.LimitCPUTime, Enforced: true, By: "host watches the worker's CPU clock, worker killed",
}
