package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation/internal/testprog"
)

// packed has what is told of a tree: each record as text, with its content.
func packed(t *testing.T, root string, since int64) (mark int64, told map[string]string) {
	t.Helper()
	var b bytes.Buffer
	if err := Pack(&b, root, since); err != nil {
		t.Fatal(err)
	}
	told = map[string]string{}
	for {
		r, err := Read(&b)
		if err != nil {
			t.Fatal(err)
		}
		switch r.Type {
		case Mark:
			mark = r.MTime
			continue
		case End:
			if b.Len() > 0 {
				t.Fatalf("%d bytes after the end", b.Len())
			}
			return mark, told
		}
		content := make([]byte, r.Size)
		if _, err := io.ReadFull(&b, content); err != nil {
			t.Fatal(err)
		}
		told[r.Name] = fmt.Sprintf("%c %o %s%s", r.Type, r.Mode, r.Target, content)
	}
}

var fixed1 = time.Unix(1, 0)

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tick returns when what is changed from now on has a later ctime.
func tick(t *testing.T, root string) {
	t.Helper()
	name := filepath.Join(root, HelperDir, "tick")
	at := func() int64 {
		write(t, name, "x")
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		return ctime(&st)
	}
	for begin := at(); at() == begin; { //nolint:revive // the clock goes on
	}
}

func TestPack(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/"+HelperDir+"/axo-guest", "")
	write(t, root+"/etc/hosts", "the sandbox's")
	write(t, root+"/a/b/old", "old")
	write(t, root+"/a/b/changed", "before")
	write(t, root+"/a/moved", "moved")
	write(t, root+"/same/file", "same")
	write(t, root+"/mode", "mode")
	mark, all := packed(t, root, math.MaxInt64)
	for name, r := range all {
		if r != "n 0 " {
			t.Errorf("%s: %s", name, r)
		}
	}
	for _, name := range []string{"a", "a/b", "a/b/old", "etc", "same/file"} {
		if _, ok := all[name]; !ok {
			t.Errorf("%s is not told", name)
		}
	}
	for _, name := range []string{HelperDir, "etc/hosts"} {
		if _, ok := all[name]; ok {
			t.Errorf("%s is told", name)
		}
	}
	tick(t, root)
	mark, _ = packed(t, root, mark)
	tick(t, root)

	write(t, root+"/a/b/changed", "after")
	if err := errors.Join(
		os.Rename(root+"/a/moved", root+"/a/b/moved"), unix.Chmod(root+"/mode", 0o4755), os.Symlink("../x", root+"/a/link"), unix.Mkfifo(root+"/fifo", 0o600),
		os.Link(root+"/a/b/changed", root+"/hard"), os.Mkdir(root+"/new", 0o750), os.Remove(root+"/same/file"),
		os.Chtimes(root+"/a/b/changed", fixed1, fixed1), // the ctime tells, whatever the mtime says
	); err != nil {
		t.Fatal(err)
	}
	_, now := packed(t, root, mark)
	want := map[string]string{
		"a": "d 755 ", "a/b": "d 755 ", "a/b/changed": "f 644 after", "a/b/moved": "f 644 moved", "a/link": "l 777 ../x", "fifo": "p 600 ",
		"hard": "h 644 a/b/changed", "mode": "f 4755 mode", "new": "d 750 ", "same": "d 755 ",
		"a/b/old": "n 0 ", "etc": "n 0 ",
	}
	for name, r := range want {
		if now[name] != r {
			t.Errorf("%s: %q, want %q", name, now[name], r)
		}
	}
	if len(now) != len(want) {
		t.Errorf("%v", now)
	}
}

func TestPut(t *testing.T) {
	testprog.Root(t, "gives files to others")
	dir := t.TempDir()
	send := func(records ...Record) *bytes.Buffer {
		var b bytes.Buffer
		for _, r := range append(records, Record{Type: End}) {
			if err := Write(&b, r); err != nil {
				t.Fatal(err)
			}
			if r.Type == File {
				b.WriteString("content"[:r.Size])
			}
		}
		return &b
	}
	file := Record{Type: File, Name: "f", Mode: 0o640, Size: 7, MTime: 1e18}
	if err := Put(send(file), dir+"/x/y", "12:13", false); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/x/y", &st); err != nil || st.Uid != 12 || st.Gid != 13 || st.Mode&0o7777 != 0o640 || st.Mtim.Nano() != 1e18 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := unix.Stat(dir+"/x", &st); err != nil || st.Uid != 12 {
		t.Errorf("the directory: %+v, %v", st, err)
	}
	// What is there is replaced, links too; into a directory also where it was not said.
	if err := errors.Join(os.Symlink("/nowhere", dir+"/x/f"), os.Mkdir(dir+"/x/d", 0o700)); err != nil {
		t.Fatal(err)
	}
	err := Put(send(file, Record{Type: Dir, Name: "d", Mode: 0o777}, Record{Type: Symlink, Name: "d/l", Target: "../y"}, Record{Type: Link, Name: "h", Target: "f"}), dir+"/x", "0", false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dir + "/x/h")
	if err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	if i, err := os.Stat(dir + "/x/d"); err != nil || i.Mode().Perm() != 0o700 {
		t.Errorf("a directory that was there: %v, %v", i.Mode(), err)
	}
	if err := Put(send(file), dir+"/x/y/z", "0", false); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	if err := Put(send(file), dir, "nobody-of-this-name", true); err == nil {
		t.Error("an owner that is not there")
	}
	if err := Put(bytes.NewReader(send(file).Bytes()[:20]), dir, "0", true); err == nil {
		t.Error("half of a record")
	}
}

func FuzzRead(f *testing.F) {
	for _, r := range []Record{{Type: End}, {Type: File, Name: "a", Size: 3, Cap: []byte("x")}, {Type: Link, Name: "a", Target: "b"}} {
		var b bytes.Buffer
		if err := Write(&b, r); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := Read(bytes.NewReader(in))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := Write(&b, r); err != nil || !bytes.HasPrefix(in, b.Bytes()) {
			t.Fatalf("%+v: %v", r, err)
		}
	})
}

func TestMainRefuses(t *testing.T) {
	for _, args := range [][]string{{}, {"pack"}, {"pack", "x"}, {"put", "a"}, {"other", "1"}} {
		if err := Main(args, bytes.NewReader(nil), io.Discard); err == nil {
			t.Errorf("%q is done", args)
		}
	}
	if !slices.Contains(own, HelperDir) {
		t.Error("the helper is packed")
	}
}
