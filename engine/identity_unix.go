//go:build unix

package engine

import (
	"fmt"
	"os"
	"syscall"
)

// identity tells whether a file is the one that a probe rested on.
func identity(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "none"
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "none"
	}
	return fmt.Sprintf("%d:%d:%d:%d:%s", st.Dev, st.Ino, st.Size, info.ModTime().UnixNano(), changeTime(st))
}
