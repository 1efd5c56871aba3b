//go:build unix

package disk

import (
	"io/fs"
	"syscall"
)

// nonblock: to open a FIFO must not wait for its other end.
const nonblock = syscall.O_NONBLOCK

func ids(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}
