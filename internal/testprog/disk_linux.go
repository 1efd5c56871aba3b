package testprog

import (
	"bytes"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DiskFile makes a file of 4 MiB in a directory, if it is not there, and has no
// cache hold any of it. It returns its name: "diskfile"; or nothing, if the
// directory is not on a block device.
func DiskFile(dir string) string {
	const name = "diskfile"
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || unix.Major(st.Dev) == 0 {
		return ""
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil && os.WriteFile(path, bytes.Repeat([]byte("disk"), 1<<20), 0o644) != nil {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if f.Sync() != nil || unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) != nil {
		return ""
	}
	return name
}
