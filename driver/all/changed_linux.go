package all

import (
	"fmt"
	"io/fs"
	"syscall"
)

// changed is what tells that a file is another one, or was changed, when its time
// and size do not.
func changed(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d %d %d %d", st.Ino, st.Uid, st.Gid, st.Ctim.Nano())
}

// ownerOf is who has a file.
func ownerOf(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}
