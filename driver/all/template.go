package all

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/internal/root"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/driver/oci"
	"github.com/axocoatl/isolation/image/disk"
	"github.com/axocoatl/isolation/image/kernel"
	"github.com/axocoatl/isolation/internal/journal"
)

// Directories of a state directory.
const (
	KernelsDir   = "kernels"
	TemplatesDir = "templates"
)

// TemplatesOf is the directory of an engine's templates: a VMM restores its own
// alone.
func TemplatesOf(engine string) string {
	if engine == microvm.QEMU {
		return TemplatesDir
	}
	return TemplatesDir + "-" + engine
}

// MicroVM is the configuration of an engine for virtual machines.
func (c Config) MicroVM(engine string) microvm.Config {
	m := microvm.Config{Engine: engine, QEMU: c.QEMU, Firecracker: c.Firecracker, NoCgroup: c.NoCgroup, Logger: c.Logger}
	if c.StateDir != "" {
		m.Templates = filepath.Join(c.StateDir, TemplatesOf(engine))
		m.SessionDir = filepath.Join(c.StateDir, journal.KeptDir)
	}
	return m
}

// BuildTemplate builds a template of an engine in a state directory; name "" is
// [microvm.DefaultTemplate].
func BuildTemplate(ctx context.Context, c Config, engine, name string, r microvm.Recipe) error {
	if c.StateDir == "" {
		return fmt.Errorf("a template needs a state directory: %w", isolation.ErrInvalidArgument)
	}
	t := newTemplates(c, engine)
	in, err := t.Inputs(ctx, r)
	if err != nil {
		return err
	}
	return t.Build(ctx, name, r, in, "")
}

// CheckTemplate reports why a template of a state directory has to be built anew:
// nil if it can be used.
func CheckTemplate(ctx context.Context, c Config, engine, name string) error {
	t := newTemplates(c, engine)
	vc := c.MicroVM(engine)
	vc.Builder = t
	return microvm.Check(ctx, vc, name)
}

// templates implements [microvm.Builder] with what a state directory has.
type templates struct {
	c      Config
	engine string

	mu    sync.Mutex
	guest []byte
	sum   string
}

func newTemplates(c Config, engine string) *templates { return &templates{c: c, engine: engine} }

// program reads axo-guest, once.
func (t *templates) program() (guest []byte, digest string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.guest == nil {
		if t.guest, err = oci.GuestProgram(oci.Config{Guest: t.c.Guest}); err != nil {
			return nil, "", err
		}
		h := sha256.Sum256(t.guest)
		t.sum = "sha256:" + hex.EncodeToString(h[:])
	}
	return t.guest, t.sum, nil
}

func (t *templates) kernel(ref string) (*kernel.Kernel, error) {
	store, err := kernel.Open(filepath.Join(t.c.StateDir, KernelsDir), kernel.Limits{})
	if err != nil {
		return nil, err
	}
	return store.Get(ref)
}

func kernelID(k *kernel.Kernel) string {
	return k.Release + " (" + k.Digest[:len("sha256:")+12] + ")"
}

// Inputs implements [microvm.Builder].
func (t *templates) Inputs(ctx context.Context, r microvm.Recipe) (in microvm.Inputs, err error) {
	if _, in.Guest, err = t.program(); err != nil {
		return in, err
	}
	k, err := t.kernel(r.Kernel)
	if err != nil {
		return in, err
	}
	in.Kernel = kernelID(k)
	switch {
	case r.Image != "":
		in.Source, err = imagesIn(t.c.StateDir).digest(r.Image)
	case r.Dir != "":
		in.Source, err = identityOf(ctx, r.Dir)
	default:
		in.Source = "host"
	}
	return in, err
}

// identityOf identifies a directory with all below it, without reading files.
func identityOf(ctx context.Context, dir string) (string, error) {
	h := sha256.New()
	_, err := root.Directory(dir)
	if err != nil {
		return "", err
	}
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %v %d %d %s\n", name, info.Mode(), info.Size(), info.ModTime().UnixNano(), changed(info))
		return nil
	})
	return "tree:" + hex.EncodeToString(h.Sum(nil)), err
}

// Build implements [microvm.Builder].
func (t *templates) Build(ctx context.Context, name string, r microvm.Recipe, in microvm.Inputs, reuse string) error {
	k, err := t.kernel(r.Kernel)
	if err != nil {
		return err
	}
	if err := k.Verify(); err != nil {
		return err
	}
	guest, _, err := t.program()
	if err != nil {
		return err
	}
	b := microvm.BuildConfig{
		Name: name, MemoryMiB: r.MemoryMiB, CPUs: r.CPUs, Accel: r.Accel, Recipe: r, SourceKey: in.Source, Reuse: reuse,
		Kernel: k.VMLinux(), KernelID: in.Kernel, Guest: guest, Progress: t.c.Progress,
		WriteInitrd: func(w io.Writer, modules, dirs []string, files []microvm.InitFile) error {
			var list []kernel.InitrdFile
			for _, f := range files {
				list = append(list, kernel.InitrdFile{Name: f.Name, Mode: f.Mode, Data: bytes.NewReader(f.Data), Size: int64(len(f.Data))})
			}
			return k.WriteInitrd(w, modules, dirs, list...)
		},
	}
	var write func(w *disk.Writer) error
	switch {
	case r.Image != "":
		img, err := imagesIn(t.c.StateDir).Open(ctx, r.Image)
		if err != nil {
			return err
		}
		defer img.Release()
		owner := disk.Same
		if img.OwnersMapped {
			owner = func(int, int) (int, int) { return 0, 0 }
		}
		b.Source, b.Image, b.Config, b.UID, b.GID = "image "+r.Image, true, img.Config, max(img.UID, 0), max(img.GID, 0)
		write = func(w *disk.Writer) error { return w.Layers(img.Layers, owner) }
	case r.Dir != "":
		b.Source, b.Image = r.Dir, true
		write = func(w *disk.Writer) error { return w.Tree(r.Dir, "/", disk.Same, nil) }
	default:
		b.Source = "this host's system"
		b.Warm = [][]string{
			{"/bin/sh", "-c", "exit 0"},
			{"/bin/sh", "-c", "! command -v python3 >/dev/null || exec python3 -c 'import json, random, re, ssl, subprocess'"},
		}
		write = func(w *disk.Writer) error { return w.Host(ctx, r.Packages...) }
	}
	b.WriteDisk = func(f *os.File, temp string) error {
		d := disk.Create(f, temp, disk.Limits{})
		return errors.Join(write(d), d.Close())
	}
	_, err = microvm.Build(ctx, t.c.MicroVM(t.engine), b)
	return err
}

// Bounds of the directories that are copied into one machine.
var dirLimits = disk.Limits{Bytes: 4 << 30, Entries: 500_000}

// nobody is who owns what is not the source's owner's.
const nobody = 65534

// WriteDirs implements [microvm.Builder].
func (t *templates) WriteDirs(ctx context.Context, f *os.File, temp string, sources []string, uid, gid int) error {
	w := disk.Create(f, temp, dirLimits)
	var err error
	for i, source := range sources {
		if err == nil {
			err = ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			if info, err = os.Stat(source); errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w (%w)", err, isolation.ErrNotFound)
			}
		}
		if err == nil {
			of, group := ownerOf(info)
			err = w.Copy(source, "/"+strconv.Itoa(i), func(u, g int) (int, int) {
				owner, ownerGroup := nobody, nobody
				if u == of {
					owner = uid
				}
				if g == group {
					ownerGroup = gid
				}
				return owner, ownerGroup
			})
		}
	}
	return errors.Join(err, w.Close())
}
