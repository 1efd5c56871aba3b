package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// Layers copies directories that lie on top of each other, base first, as
// overlayfs shows them: with whiteouts and opaque directories in the forms that
// package image unpacks. Capabilities of files are kept.
func (w *Writer) Layers(dirs []string, owner Owner) error {
	hidden := map[string]bool{} // by a layer above
	for i := len(dirs) - 1; i >= 0; i-- {
		l := layer{w: w, dir: dirs[i], owner: owner, hidden: hidden}
		root, err := os.OpenRoot(dirs[i])
		if err != nil {
			return fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
		}
		l.root, l.top = root, i == len(dirs)-1
		err = errors.Join(fs.WalkDir(root.FS(), ".", l.entry), root.Close())
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		for _, name := range l.hides {
			hidden[name] = true
		}
	}
	return nil
}

// layer is one of Layers.
type layer struct {
	w      *Writer
	root   *os.Root
	dir    string
	owner  Owner
	top    bool
	hidden map[string]bool
	hides  []string // of the layers below
}

func (l *layer) entry(rel string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	name := path.Join("/", rel)
	skip := error(nil)
	if d.IsDir() {
		skip = fs.SkipDir
	}
	if l.hidden[name] {
		return skip
	}
	above, there := l.w.paths[name] // of a layer above, or the root
	if there && !(above && d.IsDir()) {
		return skip
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	if whiteout(filepath.Join(l.dir, rel), info) {
		l.hides = append(l.hides, name)
		return nil
	}
	if d.IsDir() && attribute(filepath.Join(l.dir, rel), "user.overlay.opaque") == "y" {
		l.hides = append(l.hides, name)
	}
	if there && (!l.top || name != "/") {
		return nil
	}
	if err := l.w.copy(l.root, rel, name, info, l.owner); err != nil {
		return err
	}
	if caps := attribute(filepath.Join(l.dir, rel), "security.capability"); caps != "" && info.Mode().IsRegular() {
		return l.w.w.Setxattr(name, "security.capability", caps)
	}
	return nil
}

// whiteout reports whether an entry says that there is nothing.
func whiteout(file string, info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case ok && info.Mode()&fs.ModeCharDevice != 0:
		return st.Rdev == 0
	case info.Mode().IsRegular() && info.Size() == 0:
		_, err := unix.Lgetxattr(file, "user.overlay.whiteout", nil)
		return err == nil
	}
	return false
}

// attribute reads an extended attribute; "": it has none, or that cannot be read.
func attribute(file, name string) string {
	var b [256]byte
	n, err := unix.Lgetxattr(file, name, b[:])
	if err != nil {
		return ""
	}
	return string(b[:n])
}
