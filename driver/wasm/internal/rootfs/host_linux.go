package rootfs

import (
	"os"

	esys "github.com/tetratelabs/wazero/experimental/sys"
	"golang.org/x/sys/unix"
)

// openNonblock keeps the open of a FIFO, which is refused afterwards, from
// waiting for its other end.
const openNonblock = unix.O_NONBLOCK

func utimens(f *os.File, atim, mtim int64) esys.Errno {
	spec := func(ns int64) unix.Timespec {
		if ns == esys.UTIME_OMIT {
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		}
		return unix.NsecToTimespec(ns)
	}
	ts := []unix.Timespec{spec(atim), spec(mtim)}
	return errno(unix.UtimesNanoAt(int(f.Fd()), "", ts, unix.AT_EMPTY_PATH))
}

// OpenDir makes an os.Root of an open directory. It goes by the working
// directory: that needs neither /proc nor a right to look up the path.
func OpenDir(dir *os.File) (*os.Root, error) {
	if err := dir.Chdir(); err != nil {
		return nil, err
	}
	return os.OpenRoot(".")
}
