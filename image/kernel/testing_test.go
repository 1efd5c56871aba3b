package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

const release = "6.9.0-test"

// fakeELF makes an ELF file with one note segment and one section.
func fakeELF(kind int, note []byte, section string, content []byte, rest string) []byte {
	le := binary.LittleEndian
	names := "\x00" + section + "\x00.shstrtab\x00"
	at := 64 + 56
	offNote, offContent := at, at+len(note)
	offNames := offContent + len(content)
	offRest := offNames + len(names)
	shoff := (offRest + len(rest) + 7) &^ 7
	b := make([]byte, shoff+3*64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], uint16(kind))
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[32:], 64)
	le.PutUint64(b[40:], uint64(shoff))
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	le.PutUint32(b[64:], 4)
	le.PutUint64(b[64+8:], uint64(offNote))
	le.PutUint64(b[64+32:], uint64(len(note)))
	copy(b[offNote:], note)
	copy(b[offContent:], content)
	copy(b[offNames:], names)
	copy(b[offRest:], rest)
	sh := func(i, name, off, n int) {
		le.PutUint32(b[shoff+i*64:], uint32(name))
		le.PutUint64(b[shoff+i*64+24:], uint64(off))
		le.PutUint64(b[shoff+i*64+32:], uint64(n))
	}
	sh(1, 1, offContent, len(content))
	sh(2, 2+len(section), offNames, len(names))
	return b
}

// pvhNote is the note that fakeVMLinux has.
var pvhNote = []byte("\x04\x00\x00\x00\x08\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01\x00\x00\x00\x00")

func fakeVMLinux(release string) []byte {
	return fakeELF(elfExec, pvhNote, ".text", bytes.Repeat([]byte("code"), 300),
		"Linux version %s (%s)\x00Linux version "+release+" (builder@host) #1 SMP\n\x00")
}

func fakeModule(release, depends, softdep string) []byte {
	info := "license=GPL\x00depends=" + depends + "\x00"
	if softdep != "" {
		info += "softdep=" + softdep + "\x00"
	}
	return fakeELF(elfRel, nil, ".modinfo", []byte(info+"vermagic="+release+" SMP mod_unload \x00"), "")
}

// bzImage wraps a packed kernel as arch/x86/boot does.
func bzImage(release string, packed []byte) []byte {
	le := binary.LittleEndian
	const sects = 3
	b := make([]byte, (sects+1)*512+100)
	b[0x1f1] = sects
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint16(b[0x20e:], 0x300)
	copy(b[0x500:], release+" (builder@host) #1 SMP\x00")
	le.PutUint16(b[0x236:], 1)
	le.PutUint32(b[0x248:], 100)
	le.PutUint32(b[0x24c:], uint32(len(packed)))
	return append(append(b, packed...), "what follows the payload"...)
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func gzipped(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	must[int](t)(w.Write(b))
	must[int](t)(0, w.Close())
	return buf.Bytes()
}

func zstdPacked(t testing.TB, b []byte) []byte {
	w := must[*zstd.Encoder](t)(zstd.NewWriter(nil))
	return w.EncodeAll(b, nil)
}

func lz4Legacy(t testing.TB, b []byte) []byte {
	var buf bytes.Buffer
	w := lz4.NewWriter(&buf)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	must[int](t)(w.Write(b))
	must[int](t)(0, w.Close())
	return buf.Bytes()
}

// xzPacked packs as scripts/xz_wrap.sh of the kernel does, or nil if the host
// has no xz.
func xzPacked(t testing.TB, b []byte, flags ...string) []byte {
	c := exec.Command("xz", append([]string{"--check=crc32", "-c"}, flags...)...)
	c.Stdin = bytes.NewReader(b)
	out, err := c.Output()
	if err != nil {
		if os.Getenv("AXO_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v", err)
	}
	return out
}

// withSize appends what the kernel's build appends to all but gzip: the length.
func withSize(packed []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(n))
}

// deb makes a package of files.
func deb(t testing.TB, suffix string, pack func(testing.TB, []byte) []byte, files map[string][]byte) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range []string{"./boot/", "./lib/"} {
		must[int](t)(0, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	for name, b := range files {
		must[int](t)(0, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(b)), Mode: 0o644}))
		must[int](t)(w.Write(b))
	}
	must[int](t)(0, w.Close())
	data := buf.Bytes()
	if pack != nil {
		data = pack(t, data)
	}
	var out bytes.Buffer
	out.WriteString(arMagic)
	for _, m := range []struct {
		name string
		b    []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", []byte("odd")}, {"data.tar" + suffix, data}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.b))
		out.Write(m.b)
		if len(m.b)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// kernelFiles are those of a kernel that fits.
func kernelFiles() map[string][]byte {
	dir := "./lib/modules/" + release + "/kernel/"
	return map[string][]byte{
		"./boot/vmlinuz-" + release:                     bzImage(release, fakeVMLinux(release)),
		"./boot/config-" + release:                      []byte("CONFIG_PVH=y\n"),
		"./lib/modules/" + release + "/modules.builtin": []byte("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-mmio.ko\n"),
		dir + "drivers/virtio_console.ko":               fakeModule(release, "virtio_ring,virtio", ""),
		dir + "drivers/virtio-blk.ko":                   fakeModule(release, "virtio", ""),
		dir + "drivers/virtio.ko":                       fakeModule(release, "virtio-ring", ""),
		dir + "drivers/virtio_ring.ko":                  fakeModule(release, "", ""),
		dir + "fs/overlay.ko":                           fakeModule(release, "", ""),
		dir + "fs/erofs.ko":                             fakeModule(release, "", "pre: crc32c absent"),
		dir + "crypto/crc32c.ko":                        fakeModule(release, "", ""),
		dir + "drivers/other.ko":                        fakeModule(release, "", ""),
	}
}

func writeFile(t testing.TB, name string, b []byte) string {
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func openStore(t testing.TB) *Store {
	return must[*Store](t)(Open(filepath.Join(t.TempDir(), "kernels"), Limits{}))
}

func names(k *Kernel) string {
	var out []string
	for _, m := range k.Modules {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}
