package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/proc"
	"github.com/axocoatl/isolation/guest/wire"
)

// dirsPrefix begins the name of a directory in that of the templates, in which a
// disk of copied directories is made. The process that has it is in the name.
const dirsPrefix = ".dirs-"

// copied makes the disk with copies of the directories that a sandbox is given;
// nil: there are none. It has no name any more.
func (e *engine) copied(ctx context.Context, v vmm, t *loaded, mounts []isolation.Mount) (_ *os.File, err error) {
	if len(mounts) == 0 {
		return nil, nil
	}
	if v.caps().dataBytes == 0 {
		return nil, proc.Unsupported("directories of the host in a microVM of "+e.Name(), "the engine "+QEMU+", or the container tier")
	}
	sweepGone(e.cfg.Templates, dirsPrefix)
	temp, err := os.MkdirTemp(e.cfg.Templates, owned(dirsPrefix))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	f, err := os.Create(filepath.Join(temp, "disk"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var sources []string
	for _, m := range mounts {
		sources = append(sources, m.Source)
	}
	if err := e.cfg.Builder.WriteDirs(ctx, f, temp, sources, t.UID, t.GID); err != nil {
		return nil, fmt.Errorf("copy directories: %w", err)
	}
	// What is behind the file system takes no room.
	if err := f.Truncate(v.caps().dataBytes); err != nil {
		return nil, err
	}
	if v.caps().reopens { // as nobody
		if err := f.Chmod(0o644); err != nil {
			return nil, err
		}
	}
	return os.Open(f.Name()) // read-only, as QEMU wants it
}

// mountCopied shows the copies where they are to be.
func (m *machine) mountCopied(ctx context.Context, mounts []isolation.Mount) error {
	for i, x := range mounts {
		err := m.Conn.Mount(ctx, &wire.MountMessage{Device: "vdb", Type: "erofs", ReadOnly: true, Source: "/" + strconv.Itoa(i), Target: path.Clean(x.Destination)})
		if err != nil {
			return err
		}
	}
	return nil
}
