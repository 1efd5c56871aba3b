package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// unpackDir unpacks a tar below a directory that holds secrets beside it, and
// checks that those are as they were.
func unpackDir(t testing.TB, tarBytes []byte, limits Limits) (dir string, info layerInfo, err error) {
	t.Helper()
	top := t.TempDir()
	secret := filepath.Join(top, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, top)
	dir = filepath.Join(top, "fs")
	info, err = unpackStream(context.Background(), bytes.NewReader(tarBytes), dir, limits.withDefaults())
	t.Cleanup(func() { removeTree(dir) })
	after := snapshot(t, top)
	after = slices.DeleteFunc(after, func(s string) bool { return strings.HasPrefix(s, "fs ") || strings.HasPrefix(s, "fs/") })
	if !slices.Equal(before, after) {
		t.Errorf("outside of the layer changed:\n%q\n%q", before, after)
	}
	return dir, info, err
}

// snapshot describes all below a directory, but not the times of the directory
// itself.
func snapshot(t testing.TB, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		sys := st.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %v %d:%d %d %d", strings.TrimPrefix(p, dir+"/"), st.Mode(), sys.Uid, sys.Gid, sys.Nlink, st.Size())
		if st.Mode().IsRegular() && st.Size() < 100 {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestUnpackKeepsWhatAnImageSays(t *testing.T) {
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	dir, info, err := unpackDir(t, mkTar(t,
		ent{name: "./", mode: 0o751},
		ent{name: "bin/", mode: 0o755},
		ent{name: "bin/su", body: "su", mode: 0o4755, uid: 0, gid: 5},
		ent{name: "bin/ping", body: "ping", mode: 0o755, pax: map[string]string{"SCHILY.xattr." + xattrCap: capability, "SCHILY.xattr.user.x": "1", "SCHILY.xattr.trusted.x": "1", "SCHILY.xattr.user.overlay.opaque": "y"}},
		ent{name: "tmp/", mode: 0o1777},
		ent{name: "closed/", mode: 0o500, uid: 7, gid: 8},
		ent{name: "closed/f", body: "f", mode: 0o400, uid: 7, gid: 8},
		ent{name: "bin/hard", link: "bin/su", typ: tar.TypeLink},
		ent{name: "lib", link: "usr/lib", typ: tar.TypeSymlink},
		ent{name: "abs", link: "/etc/passwd", typ: tar.TypeSymlink},
		ent{name: "pipe", typ: tar.TypeFifo, mode: 0o622},
		ent{name: "dev/null", typ: tar.TypeChar},
		ent{name: "dev/sda", typ: tar.TypeBlock},
		ent{name: "/lead/ing", body: "x"},
		ent{name: "deep/er/file", body: "x"},
	), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	stat := func(name string) (os.FileInfo, *syscall.Stat_t) {
		t.Helper()
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return st, st.Sys().(*syscall.Stat_t)
	}
	for _, c := range []struct {
		name     string
		mode     uint32
		uid, gid uint32
	}{
		{".", unix.S_IFDIR | 0o751, 0, 0}, {"bin/su", unix.S_IFREG | 0o4755, 0, 5}, {"bin/hard", unix.S_IFREG | 0o4755, 0, 5}, {"tmp", unix.S_IFDIR | 0o1777, 0, 0},
		{"closed", unix.S_IFDIR | 0o500, 7, 8}, {"closed/f", unix.S_IFREG | 0o400, 7, 8}, {"pipe", unix.S_IFIFO | 0o622, 0, 0},
		{"lead/ing", unix.S_IFREG | 0o644, 0, 0}, {"deep/er", unix.S_IFDIR | 0o755, 0, 0},
	} {
		if _, sys := stat(c.name); sys.Mode != c.mode || isRoot() && (sys.Uid != c.uid || sys.Gid != c.gid) {
			t.Errorf("%s: mode %o, owner %d:%d", c.name, sys.Mode, sys.Uid, sys.Gid)
		}
	}
	su, _ := stat("bin/su")
	if hard, _ := stat("bin/hard"); !os.SameFile(su, hard) {
		t.Error("the hard link is none")
	}
	if to, err := os.Readlink(filepath.Join(dir, "lib")); err != nil || to != "usr/lib" {
		t.Errorf("%q %v", to, err)
	}
	if info.Skipped.Devices != 2 || !slices.Equal(info.Implied, []string{"lead", "deep", "deep/er"}) {
		t.Errorf("%+v", info)
	}
	if _, err := os.Lstat(filepath.Join(dir, "dev/null")); err == nil {
		t.Error("a device was made")
	}
	x := make([]byte, 100)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "bin/ping"), "user.x", x); err != nil || string(x[:n]) != "1" {
		t.Errorf("user.x: %q %v", x[:max(n, 0)], err)
	}
	for _, a := range []string{"trusted.x", "user.overlay.opaque"} {
		if _, err := unix.Lgetxattr(filepath.Join(dir, "bin/ping"), a, x); err != unix.ENODATA {
			t.Errorf("%s: %v", a, err)
		}
	}
	if isRoot() {
		if n, err := unix.Lgetxattr(filepath.Join(dir, "bin/ping"), xattrCap, x); err != nil || string(x[:n]) != capability {
			t.Errorf("capability: %q %v", x[:max(n, 0)], err)
		}
		if info.Skipped.Xattrs != 2 {
			t.Errorf("%d attributes were skipped", info.Skipped.Xattrs)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	small := Limits{LayerBytes: 1000, FileBytes: 600, LayerEntries: 10, PathBytes: 200, Depth: 8}
	many := func(n int) (list []ent) {
		for i := range n {
			list = append(list, ent{name: fmt.Sprint("f", i)})
		}
		return list
	}
	for _, c := range []struct {
		name  string
		list  []ent
		class error
		text  string
	}{
		{"dotdot", []ent{{name: "../secret", body: "x"}}, isolation.ErrInvalidArgument, ".."},
		{"dotdot inside", []ent{{name: "a/../../secret", body: "x"}}, isolation.ErrInvalidArgument, ".."},
		{"dotdot directory", []ent{{name: "../", mode: 0o777}}, isolation.ErrInvalidArgument, ".."},
		{"hard link out", []ent{{name: "x", link: "../secret", typ: tar.TypeLink}}, isolation.ErrInvalidArgument, ".."},
		{"hard link absolute", []ent{{name: "x", link: "/etc/passwd", typ: tar.TypeLink}}, isolation.ErrInvalidArgument, "not there"},
		{"hard link through a link", []ent{{name: "l", link: "..", typ: tar.TypeSymlink}, {name: "x", link: "l/secret", typ: tar.TypeLink}}, isolation.ErrInvalidArgument, "not there"},
		{"hard link to a directory", []ent{{name: "d/"}, {name: "x", link: "d", typ: tar.TypeLink}}, isolation.ErrInvalidArgument, "no file"},
		{"hard link to the root", []ent{{name: "x", link: "/", typ: tar.TypeLink}}, isolation.ErrInvalidArgument, "root"},
		{"hard link to a whiteout", []ent{{name: ".wh.a"}, {name: "x", link: "a", typ: tar.TypeLink}}, isolation.ErrInvalidArgument, "no file"},
		{"through a link to nothing", []ent{{name: "l", link: "/nowhere", typ: tar.TypeSymlink}, {name: "l/x", body: "x"}}, isolation.ErrInvalidArgument, "link to nothing"},
		{"through a file", []ent{{name: "f", body: "f"}, {name: "f/x", body: "x"}}, isolation.ErrInvalidArgument, "is a file"},
		{"root as a file", []ent{{name: "./", typ: tar.TypeSymlink, link: "/etc"}}, isolation.ErrInvalidArgument, "root"},
		{"whiteout of the parent", []ent{{name: "d/.wh..."}}, isolation.ErrInvalidArgument, "whiteout"},
		{"whiteout of nothing", []ent{{name: "d/.wh."}}, isolation.ErrInvalidArgument, "whiteout"},
		{"large file", []ent{{name: "f", body: strings.Repeat("x", 601)}}, isolation.ErrResourceExhausted, "601"},
		{"large layer", []ent{{name: "f", body: strings.Repeat("x", 600)}, {name: "g", body: strings.Repeat("x", 600)}}, isolation.ErrResourceExhausted, "1000"},
		{"same file often", []ent{{name: "f", body: strings.Repeat("x", 600)}, {name: "f", body: strings.Repeat("x", 600)}}, isolation.ErrResourceExhausted, "1000"},
		{"entries", many(11), isolation.ErrResourceExhausted, "entries"},
		{"long name", []ent{{name: strings.Repeat("x/", 150)}}, isolation.ErrInvalidArgument, "300 bytes"},
		{"deep name", []ent{{name: strings.Repeat("x/", 9)}}, isolation.ErrInvalidArgument, "deep"},
		{"deep by links", []ent{{name: "a/b/c/d/e/f/g/"}, {name: "l", link: "a/b/c/d/e/f/g", typ: tar.TypeSymlink}, {name: "l/h/i"}}, isolation.ErrInvalidArgument, "deep"},
		{"long link", []ent{{name: "l", link: strings.Repeat("x", 201), typ: tar.TypeSymlink}}, isolation.ErrInvalidArgument, "symbolic link"},
		{"type", []ent{{name: "x", typ: '9'}}, isolation.ErrInvalidArgument, "type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := unpackDir(t, mkTar(t, c.list...), small)
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v; want class %v and %q", err, c.class, c.text)
			}
		})
	}
}

// TestUnpackStaysBelow: names through links are resolved as in a chroot, and
// what replaces something never writes through it.
func TestUnpackStaysBelow(t *testing.T) {
	link := func(name, to string) ent { return ent{name: name, link: to, typ: tar.TypeSymlink} }
	for _, c := range []struct {
		name string
		list []ent
		has  string // a file that must have the body "evil"
	}{
		{"absolute link", []ent{{name: "etc/"}, link("l", "/etc"), {name: "l/secret", body: "evil"}}, "etc/secret"},
		{"link up", []ent{link("l", "../../.."), {name: "l/secret", body: "evil"}}, "secret"},
		{"chain of links", []ent{link("a", ".."), link("b", "a/.."), {name: "b/secret", body: "evil"}}, "secret"},
		{"file over a link", []ent{link("f", "../secret"), {name: "f", body: "evil"}}, "f"},
		{"directory over a link", []ent{link("d", ".."), {name: "d/"}, {name: "d/secret", body: "evil"}}, "d/secret"},
		{"link over a directory", []ent{{name: "d/"}, {name: "d/x", body: "x"}, link("d", ".."), {name: "d/secret", body: "evil"}}, "secret"},
		{"swap and swap back", []ent{{name: "d/"}, {name: "d/x", body: "x"}, link("d", "/"), {name: "d/"}, {name: "d/secret", body: "evil"}}, "d/secret"},
		{"hard link to a link", []ent{link("l", "../secret"), {name: "h", link: "l", typ: tar.TypeLink}, {name: "h", body: "evil"}}, "h"},
		{"write through a hard link", []ent{{name: "a", body: "good"}, {name: "b", link: "a", typ: tar.TypeLink}, {name: "a", body: "evil"}}, "a"},
		{"proc", []ent{link("l", "/proc/self/cwd"), {name: "proc/self/cwd/"}, {name: "l/secret", body: "evil"}}, "proc/self/cwd/secret"},
		{"hard link to itself", []ent{{name: "a", body: "evil"}, {name: "a", link: "a", typ: tar.TypeLink}}, "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _, err := unpackDir(t, mkTar(t, c.list...), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, c.has)); err != nil || string(b) != "evil" {
				t.Errorf("%s: %q %v", c.has, b, err)
			}
		})
	}
	dir, _, err := unpackDir(t, mkTar(t, ent{name: "a", body: "good"}, ent{name: "b", link: "a", typ: tar.TypeLink}, ent{name: "a", body: "evil"}), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "b")); string(b) != "good" {
		t.Errorf("the other name of a replaced file has %q", b)
	}
}

func TestBombs(t *testing.T) {
	zeros := make([]byte, 64<<20)
	limits := Limits{LayerBytes: 1 << 20, LayerEntries: 100}
	for name, b := range map[string][]byte{
		"gzip of a large file":   gz(t, mkTar(t, ent{name: "f", body: string(zeros)})),
		"zstd of a large file":   zst(t, mkTar(t, ent{name: "f", body: string(zeros)})),
		"zeros after the end":    gz(t, append(mkTar(t, ent{name: "f"}), zeros...)),
		"zeros after a small":    zst(t, append(mkTar(t, ent{name: "f"}), zeros...)),
		"sparse":                 sparseTar(t, 1<<40),
		"size that is not there": hugeHeader(t),
	} {
		t.Run(name, func(t *testing.T) {
			dir, info, err := unpackDir(t, b, limits)
			if !errors.Is(err, isolation.ErrResourceExhausted) {
				t.Error(err)
			}
			if info.Bytes > limits.LayerBytes {
				t.Errorf("%d bytes were let through", info.Bytes)
			}
			if n := diskUsage(t, dir); n > limits.LayerBytes+64<<10 {
				t.Errorf("%d bytes were written", n)
			}
		})
	}
	// A frame that asks for more memory than any honest one.
	_, _, err := unpackDir(t, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0}, limits)
	if err == nil || !strings.Contains(err.Error(), "window") {
		t.Errorf("2 GiB window: %v", err)
	}
}

func diskUsage(t *testing.T, dir string) (n int64) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if st, err := d.Info(); err == nil && st.Mode().IsRegular() {
			n += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return n
}

// sparseTar is the tar of a file that is one hole, in PAX format 1.0.
func sparseTar(t *testing.T, size int64) []byte {
	t.Helper()
	data := make([]byte, 512)
	copy(data, "0\n")
	var b bytes.Buffer
	pax := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=hole", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(kv) + 4
		for len(fmt.Sprintf("%d %s\n", n, kv)) != n {
			n--
		}
		pax += fmt.Sprintf("%d %s\n", n, kv)
	}
	header := func(name string, typ byte, size int) []byte {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00        ", size, 0))
		h[156] = typ
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		return h
	}
	b.Write(header("pax", 'x', len(pax)))
	b.WriteString(pax)
	b.Write(make([]byte, (512-len(pax)%512)%512))
	b.Write(header("hole", '0', len(data)))
	b.Write(data)
	b.Write(make([]byte, 1024))
	h, err := tar.NewReader(bytes.NewReader(b.Bytes())).Next()
	if err != nil || h.Size != size {
		t.Fatalf("the sparse file is none: %+v %v", h, err)
	}
	return b.Bytes()
}

func hugeHeader(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 1 << 50, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTruncated(t *testing.T) {
	whole := mkTar(t, ent{name: "a", body: strings.Repeat("abc", 1000)}, ent{name: "b", body: "b"})
	for _, pack := range []func(testing.TB, []byte) []byte{gz, zst} {
		b := pack(t, whole)
		for _, n := range []int{len(b) - 1, len(b) / 2, 20, 11} {
			if _, _, err := unpackDir(t, b[:n], Limits{}); !errors.Is(err, isolation.ErrInvalidArgument) {
				t.Errorf("%d of %d bytes: %v", n, len(b), err)
			}
		}
	}
	if _, _, err := unpackDir(t, whole[:700], Limits{}); !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Errorf("plain: %v", err)
	}
}

// TestRemoveTreeOfAnyDepth: what an image can make, gc can remove.
func TestRemoveTreeOfAnyDepth(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		if err := unix.Mkdirat(fd, "sub", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknodat(fd, "fifo", unix.S_IFIFO|0o600, 0); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "sub", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Fchmodat(fd, "sub", 0o500, 0)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if err := removeTree(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it is still there")
	}
}
