package kernel

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/form"
)

// tree has the kernel images and modules of what is imported.
type tree struct {
	dir     string // for temporary files
	images  []found
	modules map[string]map[string]source // release, module's name
	builtin map[string]source            // release: the list of modules that are in the kernel
	open    []*os.File
}

type found struct {
	name string
	src  source
}

// source is where a file's content is: in an open file, or at a path of a
// directory that was opened as a root.
type source struct {
	r        io.ReaderAt
	at, size int64
}

func (s source) reader() *io.SectionReader { return io.NewSectionReader(s.r, s.at, s.size) }

func newTree(dir string) *tree {
	return &tree{dir: dir, modules: map[string]map[string]source{}, builtin: map[string]source{}}
}

func (t *tree) close() {
	for _, f := range t.open {
		f.Close()
	}
}

// temp makes a file that has no name any more.
func (t *tree) temp() (*os.File, error) {
	f, err := os.CreateTemp(t.dir, "kernel-")
	if err != nil {
		return nil, err
	}
	t.open = append(t.open, f)
	return f, os.Remove(f.Name())
}

var (
	imageName   = form.Of(`^/boot/(vmlinuz|vmlinux|bzImage)(-|$)`)
	modulesName = form.Of(`^(?:/usr)?/lib/modules/([^/]+)/(.+)$`)
	moduleFile  = form.Of(`^([A-Za-z0-9_-]{1,64})\.ko(\.xz|\.zst|\.gz)?$`)
)

// add takes a file of a package or host by its absolute path, if it is one that
// counts.
func (t *tree) add(name string, s source) {
	if imageName().MatchString(name) {
		t.images = append(t.images, found{name, s})
		return
	}
	m := modulesName().FindStringSubmatch(name)
	if m == nil || checkRelease(m[1]) != nil {
		return
	}
	release, file := m[1], m[2]
	if file == "modules.builtin" {
		t.builtin[release] = s
		return
	}
	if k := moduleFile().FindStringSubmatch(path.Base(file)); k != nil {
		if t.modules[release] == nil {
			t.modules[release] = map[string]source{}
		}
		t.modules[release][moduleName(k[1])] = s
	}
}

// moduleName is a module's name as the kernel has it.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// openFile adds a package, a kernel image, or a directory of modules.
func (t *tree) openFile(name string, l Limits) error {
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
	}
	if info.IsDir() {
		return t.openDir(name, l)
	}
	f, err := openRegular(name)
	if err != nil {
		return err
	}
	t.open = append(t.open, f)
	if info, err = f.Stat(); err != nil {
		return err
	}
	if isDeb(f) {
		return t.openDeb(f, info.Size(), l)
	}
	if info.Size() > l.Kernel {
		return tooLarge("the image", l.Kernel)
	}
	t.images = append(t.images, found{name, source{f, 0, info.Size()}})
	return nil
}

// openDir adds a directory of modules, as /lib/modules/RELEASE is one.
func (t *tree) openDir(dir string, l Limits) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	release := filepath.Base(dir)
	if checkRelease(release) != nil {
		return refuse("%s is no directory of modules: its name is no release of Linux", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	n := 0
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if n++; n > l.Entries {
			return fmt.Errorf("%s: %w", dir, tooMany(l.Entries))
		}
		if !d.Type().IsRegular() || name != "modules.builtin" && !moduleFile().MatchString(path.Base(name)) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		t.add("/lib/modules/"+release+"/"+name, source{lazyFile(filepath.Join(dir, name)), 0, info.Size()})
		return nil
	})
}

// lazyFile is a file that is open only while it is read: a directory has
// thousands.
type lazyFile string

func (l lazyFile) ReadAt(b []byte, at int64) (int, error) {
	f, err := openRegular(string(l))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(b, at)
}

// openRegular opens a file, unless opening it would wait or do something.
func openRegular(name string) (*os.File, error) {
	info, err := os.Stat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = refuse("%s is not a regular file", name)
	}
	if err != nil {
		return nil, err
	}
	return os.Open(name)
}

func tooMany(n int) error {
	return fmt.Errorf("more than %d files: %w", n, isolation.ErrResourceExhausted)
}

// host adds what the host has: its running kernel if that is in /boot, else
// the only one there.
func (t *tree) host(l Limits, running string) error {
	images, err := filepath.Glob("/boot/vmlinuz-*")
	if err != nil {
		return err
	}
	var have []string
	for _, f := range images {
		if r := strings.TrimPrefix(f, "/boot/vmlinuz-"); checkRelease(r) == nil {
			if info, err := os.Stat("/lib/modules/" + r); err == nil && info.IsDir() {
				have = append(have, r)
			}
		}
	}
	release := running
	switch {
	case slices.Contains(have, running):
	case len(have) == 1:
		release = have[0]
	case len(have) == 0:
		return fmt.Errorf("this host has no kernel in /boot with modules in /lib/modules; "+
			"import a package instead (on Debian: apt-get download linux-image-cloud-amd64's dependency): %w", isolation.ErrNotFound)
	default:
		return fmt.Errorf("this host's kernels are %v, and it runs %s; import one by name: /boot/vmlinuz-RELEASE /lib/modules/RELEASE: %w",
			have, running, isolation.ErrFailedPrecondition)
	}
	if err := t.openFile("/boot/vmlinuz-"+release, l); err != nil {
		return err
	}
	return t.openFile("/lib/modules/"+release, l)
}
