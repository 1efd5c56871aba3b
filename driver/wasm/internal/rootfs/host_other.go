//go:build !linux

package rootfs

import (
	"os"

	esys "github.com/tetratelabs/wazero/experimental/sys"
)

const openNonblock = 0

func utimens(*os.File, int64, int64) esys.Errno { return esys.ENOSYS }

// OpenDir makes an os.Root of an open directory, by its name.
func OpenDir(dir *os.File) (*os.Root, error) { return os.OpenRoot(dir.Name()) }
