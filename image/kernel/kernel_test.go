package kernel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/testprog"
)

func TestExtract(t *testing.T) {
	vmlinux := fakeVMLinux(release)
	for name, packed := range map[string]func(t *testing.T) []byte{
		"plain": func(*testing.T) []byte { return vmlinux },
		"gzip":  func(t *testing.T) []byte { return gzipped(t, vmlinux) },
		"zstd":  func(t *testing.T) []byte { return withSize(zstdPacked(t, vmlinux), len(vmlinux)) },
		"lz4":   func(t *testing.T) []byte { return withSize(lz4Legacy(t, vmlinux), len(vmlinux)) },
		"xz": func(t *testing.T) []byte {
			return withSize(xzPacked(t, vmlinux, "--x86", "--lzma2=dict=32MiB"), len(vmlinux))
		},
	} {
		t.Run(name, func(t *testing.T) {
			payload := packed(t)
			for what, image := range map[string][]byte{"bzImage": bzImage(release, payload), "bare": payload} {
				if what == "bare" && name != "plain" && name != "gzip" {
					continue // the length is part of a payload only
				}
				w := must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "vmlinux")))
				defer w.Close()
				got, err := extract(w, bytes.NewReader(image), int64(len(image)), Limits{}.withDefaults())
				if err != nil || got != release {
					t.Fatalf("%s: release %q, %v", what, got, err)
				}
				if b := must[[]byte](t)(os.ReadFile(w.Name())); !bytes.Equal(b, vmlinux) {
					t.Errorf("%s: %d bytes, want the %d that were packed", what, len(b), len(vmlinux))
				}
			}
		})
	}
}

func TestImport(t *testing.T) {
	const want = "virtio_ring virtio virtio_console virtio_blk overlay crc32c erofs"
	compressedModules := kernelFiles()
	for name, b := range compressedModules {
		if m, ok := strings.CutSuffix(name, ".ko"); ok {
			delete(compressedModules, name)
			compressedModules[m+".ko.zst"] = zstdPacked(t, b)
		}
	}
	for name, pkg := range map[string][]byte{
		"plain": deb(t, "", nil, kernelFiles()),
		"gzip":  deb(t, ".gz", gzipped, kernelFiles()),
		"zstd":  deb(t, ".zst", zstdPacked, compressedModules),
		"xz":    deb(t, ".xz", func(t testing.TB, b []byte) []byte { return xzPacked(t, b) }, kernelFiles()),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			k, err := s.Import(t.Context(), []string{writeFile(t, "linux.deb", pkg)}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if k.Release != release || names(k) != want || len(k.Builtin) != 2 {
				t.Errorf("release %s, modules %s, built in %v", k.Release, names(k), k.Builtin)
			}
			again, err := s.Get("")
			if err != nil || again.Digest != k.Digest {
				t.Fatalf("Get: %v, %v", again, err)
			}
			if err := again.Verify(); err != nil {
				t.Error(err)
			}
			list, err := again.Needs("virtio-console", "erofs")
			if err == nil {
				t.Errorf("a name with a hyphen is not the kernel's: %v", list)
			}
			list, err = again.Needs("virtio_mmio", "virtio_console", "erofs")
			if got := strings.Join(list, " "); err != nil || got != "virtio_ring virtio virtio_console crc32c erofs" {
				t.Errorf("needs %s, %v", got, err)
			}
			var unsupported *isolation.UnsupportedError
			if _, err := again.Needs("vsock"); !errors.As(err, &unsupported) {
				t.Errorf("a module that is not there: %v", err)
			}
		})
	}
}

// TestImportParts takes kernel and modules from different files, as Ubuntu has
// them, and as a host has them.
func TestImportParts(t *testing.T) {
	image, modules := map[string][]byte{}, map[string][]byte{}
	dir := filepath.Join(t.TempDir(), "lib/modules", release)
	for name, b := range kernelFiles() {
		if strings.HasPrefix(name, "./boot/vmlinuz") {
			image[name] = b
			continue
		}
		modules[name] = b
		if rel, ok := strings.CutPrefix(name, "./lib/modules/"+release+"/"); ok {
			file := filepath.Join(dir, rel)
			must[int](t)(0, os.MkdirAll(filepath.Dir(file), 0o700))
			must[int](t)(0, os.WriteFile(file, b, 0o600))
		}
	}
	imageDeb, modulesDeb := writeFile(t, "image.deb", deb(t, "", nil, image)), writeFile(t, "modules.deb", deb(t, "", nil, modules))
	bare := writeFile(t, "vmlinuz", bzImage(release, fakeVMLinux(release)))
	s := openStore(t)
	var digest string
	for _, files := range [][]string{{imageDeb, modulesDeb}, {modulesDeb, imageDeb}, {bare, dir}} {
		k, err := s.Import(t.Context(), files, Options{Modules: []string{"other"}})
		if err != nil {
			t.Fatalf("%v: %v", files, err)
		}
		if digest == "" {
			digest = k.Digest
		} else if k.Digest != digest {
			t.Errorf("%v: the same kernel has digest %s and %s", files, digest, k.Digest)
		}
	}
	k, err := s.Import(t.Context(), []string{bare}, Options{})
	if err != nil || k.Builtin != nil || len(k.Modules) != 0 {
		t.Fatalf("a bare image: %+v, %v", k, err)
	}
	if list, err := k.Needs("virtio_mmio"); err != nil || len(list) != 0 {
		t.Errorf("a bare image needs %v, %v", list, err)
	}
	if list, err := s.List(); err != nil || len(list) != 2 {
		t.Fatalf("%d kernels, %v", len(list), err)
	}
	if _, err := s.Remove(t.Context(), k.Digest[:len("sha256:")+6]); err != nil {
		t.Error(err)
	}
	if _, err := s.Remove(t.Context(), release); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(""); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) != 1 { // the lock
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestImportRefuses(t *testing.T) {
	with := func(change func(map[string][]byte)) []byte {
		f := kernelFiles()
		change(f)
		return deb(t, "", nil, f)
	}
	image, console := "./boot/vmlinuz-"+release, "./lib/modules/"+release+"/kernel/drivers/virtio_console.ko"
	whole := deb(t, "", nil, kernelFiles())
	for name, c := range map[string]struct {
		file []byte
		want error
		says string
	}{
		"empty":          {nil, isolation.ErrInvalidArgument, "no ELF file"},
		"text":           {[]byte("#!/bin/sh\n"), isolation.ErrInvalidArgument, "no ELF file"},
		"cut package":    {whole[:len(whole)/2], isolation.ErrInvalidArgument, "damaged"},
		"no kernel":      {with(func(f map[string][]byte) { delete(f, image) }), isolation.ErrInvalidArgument, "modules without a kernel"},
		"two kernels":    {with(func(f map[string][]byte) { f["./boot/vmlinuz-2"] = f[image] }), isolation.ErrInvalidArgument, "2 kernel images"},
		"no required":    {with(func(f map[string][]byte) { delete(f, console) }), isolation.ErrUnsupported, "virtio_console"},
		"no dependency":  {with(func(f map[string][]byte) { f[console] = fakeModule(release, "gone", "") }), isolation.ErrUnsupported, "gone"},
		"other release":  {with(func(f map[string][]byte) { f[console] = fakeModule("6.9.1", "", "") }), isolation.ErrInvalidArgument, "6.9.1"},
		"module is text": {with(func(f map[string][]byte) { f[console] = []byte("x") }), isolation.ErrInvalidArgument, "no ELF file"},
		"no PVH": {with(func(f map[string][]byte) {
			f[image] = fakeELF(elfExec, nil, ".text", nil, "Linux version "+release+" (")
		}), isolation.ErrUnsupported, "CONFIG_PVH"},
		"no banner":        {with(func(f map[string][]byte) { f[image] = fakeELF(elfExec, pvhNote, ".text", nil, "") }), isolation.ErrInvalidArgument, "banner"},
		"header lies":      {with(func(f map[string][]byte) { f[image] = bzImage("1.0", fakeVMLinux(release)) }), isolation.ErrInvalidArgument, "1.0"},
		"release is path":  {with(func(f map[string][]byte) { f[image] = fakeVMLinux("6/../../x") }), isolation.ErrInvalidArgument, "banner"},
		"payload too long": {with(func(f map[string][]byte) { f[image] = f[image][:3000] }), isolation.ErrInvalidArgument, "ends before"},
		"unknown packing":  {with(func(f map[string][]byte) { f[image] = bzImage(release, []byte("packed somehow")) }), isolation.ErrInvalidArgument, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			_, err := s.Import(t.Context(), []string{writeFile(t, "x", c.file)}, Options{})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v with %q", err, c.want, c.says)
			}
			if left, err := os.ReadDir(s.dir); err != nil || len(left) != 1 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestBounds: a circle ends, a bomb does not get far.
func TestBounds(t *testing.T) {
	f := kernelFiles()
	dir := "./lib/modules/" + release + "/kernel/"
	f[dir+"drivers/virtio_ring.ko"] = fakeModule(release, "virtio", "")
	s := openStore(t)
	if _, err := s.Import(t.Context(), []string{writeFile(t, "x", deb(t, "", nil, f))}, Options{}); err != nil {
		t.Errorf("a circle of modules: %v", err)
	}
	for name, l := range map[string]Limits{
		"kernel": {Kernel: 1000}, "package": {Package: 4096}, "module": {Module: 100}, "entries": {Entries: 3},
	} {
		s := must[*Store](t)(Open(filepath.Join(t.TempDir(), "k"), l))
		_, err := s.Import(t.Context(), []string{writeFile(t, "x", deb(t, ".gz", gzipped, kernelFiles()))}, Options{})
		if !errors.Is(err, isolation.ErrResourceExhausted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamage: a kernel is not used when a byte of it changed.
func TestDamage(t *testing.T) {
	s := openStore(t)
	k, err := s.Import(t.Context(), []string{writeFile(t, "x", deb(t, "", nil, kernelFiles()))}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := must[[]byte](t)(os.ReadFile(k.Module("overlay")))
	b[len(b)/2] ^= 1
	must[int](t)(0, os.WriteFile(k.Module("overlay"), b, 0o600))
	if err := k.Verify(); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("a damaged module: %v", err)
	}
	info := filepath.Join(k.dir, fileInfo)
	b = bytes.Replace(must[[]byte](t)(os.ReadFile(info)), []byte(release), []byte("9.9.9-test"), 1)
	must[int](t)(0, os.WriteFile(info, b, 0o600))
	if _, err := s.Get(""); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("a changed description: %v", err)
	}
}

// TestImportDebian takes the kernel that the tests of virtual machines boot.
func TestImportDebian(t *testing.T) {
	file := testprog.KernelPackage(t)
	k, err := openStore(t).Import(t.Context(), []string{file}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(k.Release, "-cloud-amd64") || !strings.Contains(filepath.Base(file), k.Release) {
		t.Errorf("%s is Linux %s", file, k.Release)
	}
	list, err := k.Needs("virtio_mmio", "virtio_console", "virtio_blk", "overlay", "erofs", "ext4", "vmw_vsock_virtio_transport")
	if err != nil || len(list) < 8 || list[0] != "virtio_ring" {
		t.Errorf("needs %v, %v", list, err)
	}
	if err := k.Verify(); err != nil {
		t.Error(err)
	}
}

func FuzzImport(f *testing.F) {
	f.Add(deb(f, "", nil, kernelFiles()))
	f.Add(deb(f, ".gz", gzipped, kernelFiles()))
	f.Add(deb(f, ".zst", zstdPacked, kernelFiles()))
	f.Add(bzImage(release, lz4Legacy(f, fakeVMLinux(release))))
	f.Add(bzImage(release, zstdPacked(f, fakeVMLinux(release))))
	f.Add(fakeVMLinux(release))
	f.Add(fakeModule(release, "a,b", "pre: c"))
	s := must[*Store](f)(Open(f.TempDir(), Limits{Kernel: 1 << 20, Package: 1 << 20, Module: 1 << 18, Entries: 100}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readModule(b); err == nil && len(b) < 64 {
			t.Error("a module of less than an ELF header")
		}
		k, err := s.Import(t.Context(), []string{writeFile(t, "x", b)}, Options{})
		if err != nil {
			return
		}
		if err := checkRelease(k.Release); err != nil {
			t.Error(err)
		}
		if err := k.Verify(); err != nil {
			t.Error(err)
		}
		if _, err := s.Remove(t.Context(), k.Digest); err != nil {
			t.Error(err)
		}
	})
}
