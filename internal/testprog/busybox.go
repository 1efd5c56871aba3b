package testprog

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Busybox returns the path of a static busybox, from Debian's package
// busybox-static.
func Busybox(t testing.TB) string {
	t.Helper()
	path := FindBusybox()
	if path == "" && os.Getenv("AXO_REQUIRE") != "" {
		t.Fatal("needs busybox-static")
	} else if path == "" {
		t.Skip("SKIPPED, NOT PROVED: needs busybox-static")
	}
	return path
}

// FindBusybox returns the same, or nothing if it is not installed.
func FindBusybox() string {
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		// One with an interpreter cannot be alone in a root file system.
		if b, err := os.ReadFile(path); err == nil && !bytes.Contains(b[:min(len(b), 4096)], []byte("/ld-")) {
			return path
		}
	}
	return ""
}

// RootEntry is one entry of a root file system. The zero Typeflag is a file, or
// a directory if the name ends in a slash.
type RootEntry struct {
	tar.Header
	Body string
}

// RootFS is a tar of a root file system with busybox under all of its names,
// the users root, app (77:78, and of the group extra, 90) and nobody, and more.
func RootFS(t testing.TB, more ...RootEntry) []byte {
	t.Helper()
	path := Busybox(t)
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := func(name string, mode int64) RootEntry { return RootEntry{Header: tar.Header{Name: name, Mode: mode}} }
	list := []RootEntry{
		dir("bin/", 0o755), dir("etc/", 0o755), dir("tmp/", 0o1777), dir("root/", 0o700),
		{Header: tar.Header{Name: "home/app/", Mode: 0o750, Uid: 77, Gid: 78}},
		{Header: tar.Header{Name: "etc/passwd", Mode: 0o644}, Body: "root:x:0:0:root:/root:/bin/sh\napp:x:77:78:app:/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"},
		{Header: tar.Header{Name: "etc/group", Mode: 0o644}, Body: "root:x:0:\napp:x:78:\nextra:x:90:other,app\nnogroup:x:65534:\n"},
		{Header: tar.Header{Name: "bin/busybox", Mode: 0o755}, Body: string(program)},
	}
	for name := range strings.FieldsSeq(string(names)) {
		if name != "busybox" {
			list = append(list, RootEntry{Header: tar.Header{Name: "bin/" + name, Typeflag: tar.TypeLink, Linkname: "bin/busybox"}})
		}
	}
	return Tar(t, append(list, more...)...)
}

// Tar is a tar of these entries.
func Tar(t testing.TB, list ...RootEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range list {
		h := e.Header
		h.Size = int64(len(e.Body))
		if h.Typeflag == 0 && strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.Body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
