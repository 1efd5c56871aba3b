package kernel

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/axocoatl/isolation"
)

// Limits bound what an import may cost. A field that is zero has the default.
type Limits struct {
	Kernel  int64 // bytes of a kernel, packed or not: 512 MiB
	Package int64 // bytes of a package's files: 4 GiB
	Module  int64 // bytes of a module: 64 MiB
	Entries int   // files of a package or directory: 100,000
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Kernel: cmp.Or(l.Kernel, 512<<20), Package: cmp.Or(l.Package, 4<<30), Module: cmp.Or(l.Module, 64<<20), Entries: cmp.Or(l.Entries, 100_000),
	}
}

// Kernel is one that is kept.
type Kernel struct {
	// Release is as in uname -r: 6.1.0-56-cloud-amd64.
	Release string `json:"release"`
	// Digest is that of everything below, and with it of all files.
	Digest string `json:"digest"`
	// Kernel is the digest of the uncompressed image, KernelSize its bytes.
	Kernel     string `json:"kernel"`
	KernelSize int64  `json:"kernel_size"`
	// Modules are in an order in which they load.
	Modules []Module `json:"modules"`
	// Builtin are those of the modules that virtual machines use which are part
	// of the image; nil if that is not known.
	Builtin []string  `json:"builtin,omitempty"`
	Source  string    `json:"source"` // what it was imported from
	Added   time.Time `json:"added"`

	dir string
}

// VMLinux is the path of the uncompressed image.
func (k *Kernel) VMLinux() string { return filepath.Join(k.dir, fileKernel) }

// Module is the path of a module.
func (k *Kernel) Module(name string) string { return filepath.Join(k.dir, name+".ko") }

// Needs lists modules, with those that they depend on, in an order in which they
// load. What is built in is left out; where that is not known, what is not a
// module is taken for built in.
func (k *Kernel) Needs(names ...string) ([]string, error) {
	want := map[string]bool{}
	var mark func(string) error
	mark = func(n string) error {
		i := slices.IndexFunc(k.Modules, func(m Module) bool { return m.Name == n })
		switch {
		case want[n]:
			return nil
		case i < 0 && (k.Builtin == nil || slices.Contains(k.Builtin, n)):
			return nil
		case i < 0:
			return &isolation.UnsupportedError{Feature: "module " + n + " of Linux " + k.Release, Need: "another kernel"}
		}
		want[n] = true
		for _, d := range k.Modules[i].Depends {
			if err := mark(d); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range names {
		if err := mark(n); err != nil {
			return nil, err
		}
	}
	var out []string
	for _, m := range k.Modules {
		if want[m.Name] {
			out = append(out, m.Name)
		}
	}
	return out, nil
}

// Has reports whether the kernel is known to have a module, built in or not.
func (k *Kernel) Has(name string) bool {
	return slices.Contains(k.Builtin, name) || slices.ContainsFunc(k.Modules, func(m Module) bool { return m.Name == name })
}

// Verify reads all files and compares their digests.
func (k *Kernel) Verify() error {
	files := map[string]string{k.VMLinux(): k.Kernel}
	for _, m := range k.Modules {
		files[k.Module(m.Name)] = m.Digest
	}
	for name, want := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
		if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != want {
			return fmt.Errorf("%s has %s, want %s; import the kernel again: %w", name, got, want, isolation.ErrFailedPrecondition)
		}
	}
	return nil
}

// digest is that of what a kernel consists of.
func (k *Kernel) digest() string {
	c := Kernel{Release: k.Release, Kernel: k.Kernel, KernelSize: k.KernelSize, Modules: k.Modules, Builtin: k.Builtin}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and numbers
	}
	return digestOf(b)
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

const (
	fileKernel = "vmlinux"
	fileInfo   = "kernel.json"
	tempPrefix = ".import-"
)

// Store is a directory of kernels. It is safe for concurrent use, by several
// processes too.
type Store struct {
	dir    string
	limits Limits
}

// Open opens the store in a directory, and makes it if it is not there.
func Open(dir string, l Limits) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("kernel store: %w", err)
	}
	return &Store{filepath.Clean(dir), l.withDefaults()}, nil
}

// Options say what is imported beyond what virtual machines always use.
type Options struct {
	Modules []string // names; each must be there
}

// Import takes a kernel from files: Debian packages, a kernel image, a directory
// of modules. Together they must have one kernel image.
func (s *Store) Import(ctx context.Context, files []string, o Options) (*Kernel, error) {
	return s.take(ctx, strings.Join(files, " "), o, func(t *tree) error {
		for _, f := range files {
			if err := t.openFile(f, s.limits); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
}

// ImportHost takes the host's own kernel.
func (s *Store) ImportHost(ctx context.Context, o Options) (*Kernel, error) {
	return s.take(ctx, "this host", o, func(t *tree) error { return t.host(s.limits, hostRelease()) })
}

func (s *Store) take(ctx context.Context, from string, o Options, open func(*tree) error) (*Kernel, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.sweep()
	dir, err := os.MkdirTemp(s.dir, tempPrefix)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	t := newTree(dir)
	defer t.close()
	if err := open(t); err != nil {
		return nil, err
	}
	if n := len(t.images); n != 1 {
		if n == 0 && len(t.modules) > 0 {
			return nil, refuse("modules without a kernel; Ubuntu has the kernel in a package linux-image-*, name both files")
		}
		return nil, refuse("%d kernel images, want one", n)
	}
	k := &Kernel{Source: from, Added: time.Now().UTC().Truncate(time.Second)}
	if err := k.image(filepath.Join(dir, fileKernel), t.images[0].src, s.limits); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := k.pack(dir, t, o, s.limits); err != nil {
		return nil, err
	}
	k.Digest = k.digest()
	b, err := json.MarshalIndent(k, "", "\t")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, fileInfo), append(b, '\n'), 0o600); err != nil {
		return nil, err
	}
	if err := syncFiles(dir); err != nil {
		return nil, err
	}
	k.dir = filepath.Join(s.dir, strings.TrimPrefix(k.Digest, "sha256:"))
	// The same kernel, imported again, is the newest one.
	if err := os.RemoveAll(k.dir); err != nil {
		return nil, err
	}
	return k, os.Rename(dir, k.dir)
}

// image unpacks the kernel's image.
func (k *Kernel) image(name string, src source, l Limits) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if k.Release, err = extract(f, src.reader(), src.size, l); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	k.KernelSize = info.Size()
	e, err := readELF(f, k.KernelSize)
	if err != nil {
		return err
	}
	if pvh, err := e.hasPVH(); err != nil {
		return err
	} else if !pvh {
		return &isolation.UnsupportedError{Feature: "Linux " + k.Release, Need: "a kernel that was built with CONFIG_PVH, as a distribution's cloud kernel is"}
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, k.KernelSize)); err != nil {
		return err
	}
	k.Kernel = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return nil
}

// pack packs the modules.
func (k *Kernel) pack(dir string, t *tree, o Options, l Limits) error {
	p := &packer{release: k.Release, from: t.modules[k.Release], dir: dir, limits: l, done: map[string]bool{}}
	if len(t.modules) > 0 && p.from == nil {
		return refuse("the modules are not those of the kernel, which is %s", k.Release)
	}
	if b, ok := t.builtin[k.Release]; ok {
		var err error
		if p.builtin, err = builtins(b, l); err != nil {
			return err
		}
	}
	for _, n := range slices.Concat(required, o.Modules) {
		n = moduleName(n)
		err := p.add(n)
		var absent errAbsent
		if errors.As(err, &absent) && absent.name == n && p.from == nil && p.builtin == nil && slices.Contains(required, n) {
			continue // a bare image: the machine's start will tell
		} else if errors.As(err, &absent) {
			return &isolation.UnsupportedError{Feature: "Linux " + k.Release + " in a virtual machine (" + err.Error() + ")",
				Need: "a kernel for clouds, and on Ubuntu its package linux-modules-* too"}
		} else if err != nil {
			return err
		}
	}
	for _, n := range optional {
		var absent errAbsent
		if err := p.add(n); err != nil && !errors.As(err, &absent) {
			return err
		}
	}
	k.Modules = p.out
	if p.builtin != nil {
		k.Builtin = []string{}
		for _, n := range slices.Concat(required, optional, o.Modules) {
			if p.builtin[n] {
				k.Builtin = append(k.Builtin, n)
			}
		}
	}
	return nil
}

// sweep removes what imports that were killed left. The caller has the lock.
func (s *Store) sweep() {
	list, _ := filepath.Glob(filepath.Join(s.dir, tempPrefix+"*"))
	for _, d := range list {
		_ = os.RemoveAll(d) // the next import tries again
	}
}

// List returns all kernels, the newest first.
func (s *Store) List() ([]*Kernel, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var out []*Kernel
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		k, err := s.read(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed meanwhile
		} else if err != nil {
			return out, err
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b *Kernel) int {
		if c := b.Added.Compare(a.Added); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return out, nil
}

func (s *Store) read(name string) (*Kernel, error) {
	k := &Kernel{dir: filepath.Join(s.dir, name)}
	b, err := os.ReadFile(filepath.Join(k.dir, fileInfo))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, k); err != nil {
		return nil, fmt.Errorf("%s: %w", k.dir, err)
	}
	if k.Digest != "sha256:"+name || k.digest() != k.Digest {
		return nil, fmt.Errorf("%s does not match its digest; remove it and import the kernel again: %w", k.dir, isolation.ErrFailedPrecondition)
	}
	return k, nil
}

// Get finds a kernel by release, by digest, or by at least four digits of one.
// "" is the newest.
func (s *Store) Get(ref string) (*Kernel, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	if ref == "" {
		if len(list) == 0 {
			return nil, fmt.Errorf("there is no kernel; axo kernel import takes one: %w", isolation.ErrNotFound)
		}
		return list[0], nil
	}
	var match []*Kernel
	hexRef := strings.TrimPrefix(ref, "sha256:")
	for _, k := range list {
		if k.Release == ref {
			return k, nil // the newest of this release
		}
		if len(hexRef) >= 4 && strings.HasPrefix(strings.TrimPrefix(k.Digest, "sha256:"), hexRef) {
			match = append(match, k)
		}
	}
	switch len(match) {
	case 0:
		return nil, fmt.Errorf("kernel %q: %w", ref, isolation.ErrNotFound)
	case 1:
		return match[0], nil
	}
	return nil, refuse("%d kernels have a digest that begins with %s", len(match), ref)
}

// Remove removes a kernel. Templates that were made with it go on working.
func (s *Store) Remove(ctx context.Context, ref string) (*Kernel, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if ref == "" {
		return nil, refuse("no kernel named")
	}
	k, err := s.Get(ref)
	if err != nil {
		return nil, err
	}
	// A name that is not listed first: it is there whole or not at all.
	gone := filepath.Join(s.dir, tempPrefix+filepath.Base(k.dir))
	if err := os.Rename(k.dir, gone); err != nil {
		return nil, err
	}
	return k, os.RemoveAll(gone)
}

// syncFiles makes a directory's files durable.
func syncFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
