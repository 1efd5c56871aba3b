package kernel

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// InitrdFile is a file of an initial RAM file system.
type InitrdFile struct {
	Name string // without a slash before it
	Mode os.FileMode
	Data io.Reader
	Size int64
}

// ModuleList is a file of the initial RAM file system: the paths of its modules,
// in the order in which they are to be loaded, one in each line.
const ModuleList = "modules.list"

// WriteInitrd writes an initial RAM file system (the cpio format "newc",
// Documentation/driver-api/early-userspace/buffer-format.rst): modules of the
// kernel, with those that they depend on, files, and empty directories.
func (k *Kernel) WriteInitrd(w io.Writer, modules []string, dirs []string, files ...InitrdFile) error {
	order, err := k.Needs(modules...)
	if err != nil {
		return err
	}
	c := cpio.NewWriter(w)
	for _, d := range append([]string{"modules"}, dirs...) {
		if err := c.WriteHeader(&cpio.Header{Name: d, Mode: cpio.TypeDir | 0o755}); err != nil {
			return err
		}
	}
	add := func(f InitrdFile) error {
		if err := c.WriteHeader(&cpio.Header{Name: f.Name, Mode: cpio.TypeReg | cpio.FileMode(f.Mode.Perm()), Size: f.Size}); err != nil {
			return err
		}
		n, err := io.Copy(c, io.LimitReader(f.Data, f.Size))
		if err == nil && n < f.Size {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	var list strings.Builder
	for _, name := range order {
		file := "modules/" + name + ".ko"
		fmt.Fprintf(&list, "/%s\n", file)
		if err := k.addModule(name, file, add); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	text := list.String()
	for _, f := range append(files, InitrdFile{ModuleList, 0o644, strings.NewReader(text), int64(len(text))}) {
		if err := add(f); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return c.Close()
}

func (k *Kernel) addModule(name, file string, add func(InitrdFile) error) error {
	f, err := os.Open(k.Module(name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return add(InitrdFile{file, 0o644, f, info.Size()})
}
