//go:build !linux

package wasm

import (
	"io/fs"
	"os"
	"time"

	"github.com/axocoatl/isolation"
)

const (
	byPath       = true
	imagesWork   = false
	openNonblock = 0
)

// fileID tells whether a file is the one that was read before.
type fileID struct {
	size  int64
	mtime time.Time
}

func identify(info fs.FileInfo) fileID { return fileID{info.Size(), info.ModTime()} }

// settled reports false: without an inode and a change time nothing is certain,
// and the file is read again.
func (id fileID) settled() bool { return false }

// newPrivateFile returns an empty file. It keeps its name, by which a worker
// opens it, until it is closed.
func newPrivateFile(name string) (*os.File, error) { return os.CreateTemp("", name+"-") }

// discard closes and removes a file of newPrivateFile.
func discard(f *os.File) {
	f.Close()
	os.Remove(f.Name())
}

func checkPrivate(string) error { return nil }

func hostMemory() int64 { return 4 << 30 }

var cpuTimeEnforcement = isolation.Enforcement{
	Limit: isolation.LimitCPUTime, Reason: "the CPU time of a running process can be read on Linux only",
}
