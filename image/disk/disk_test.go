package disk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/axocoatl/isolation"
)

func source(t *testing.T) string {
	dir := t.TempDir()
	when := time.Unix(1700000000, 0)
	for name, data := range map[string]string{"a/b/file": "content", "a/empty": "", "top": string(bytes.Repeat([]byte("x"), 10000))} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o750), os.WriteFile(file, []byte(data), 0o640), os.Chtimes(file, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(dir, "a/link")), os.Chmod(filepath.Join(dir, "top"), 0o755|fs.ModeSetuid)); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"a/b", "a", "."} {
		if err := os.Chtimes(filepath.Join(dir, d), when, when); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func build(t *testing.T, l Limits, f func(*Writer) error) (*os.File, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	w := Create(out, t.TempDir(), l)
	return out, errors.Join(f(w), w.Close())
}

func owned(int, int) (int, int) { return 7, 8 }

func TestTree(t *testing.T) {
	dir := source(t)
	sums := map[[sha256.Size]byte]bool{}
	for range 2 {
		f, err := build(t, Limits{}, func(w *Writer) error {
			return errors.Join(w.Tree(dir, "/data", owned, nil), w.File("/etc/name", 0o600, []byte("me")), w.Dir("/tmp", fs.ModeSticky|0o777, 1, 2), w.Link("/bin", "data/a"))
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		sums[sha256.Sum256(b)] = true
		img, err := erofs.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"data/a/b/file": "content", "data/a/empty": "", "etc/name": "me"} {
			if got, err := fs.ReadFile(img, name); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		info, err := fs.Stat(img, "data/top")
		if err != nil || info.Size() != 10000 || info.Sys().(*erofs.Stat).Mode != 0o755|fs.ModeSetuid || info.ModTime().Unix() != 1700000000 {
			t.Errorf("data/top: %v %v %v, %v", info.Size(), info.Mode(), info.ModTime(), err)
		}
		if s, ok := info.Sys().(*erofs.Stat); !ok || s.UID != 7 || s.GID != 8 {
			t.Errorf("data/top: %+v", info.Sys())
		}
	}
	if len(sums) != 1 {
		t.Error("the same files made different disks")
	}
}

func TestRefuses(t *testing.T) {
	dir := source(t)
	for name, c := range map[string]struct {
		f    func(*Writer) error
		l    Limits
		want error
	}{
		"relative":       {func(w *Writer) error { return w.File("x", 0o600, nil) }, Limits{}, isolation.ErrInvalidArgument},
		"not clean":      {func(w *Writer) error { return w.File("/a/../x", 0o600, nil) }, Limits{}, isolation.ErrInvalidArgument},
		"twice":          {func(w *Writer) error { return errors.Join(w.File("/x", 0o600, nil), w.Link("/x", "y")) }, Limits{}, isolation.ErrAlreadyExists},
		"below a link":   {func(w *Writer) error { return errors.Join(w.Link("/x", "/etc"), w.File("/x/y", 0o600, nil)) }, Limits{}, isolation.ErrInvalidArgument},
		"too many bytes": {func(w *Writer) error { return w.Tree(dir, "/", Same, nil) }, Limits{Bytes: 9000}, isolation.ErrResourceExhausted},
		"too many files": {func(w *Writer) error { return w.Tree(dir, "/", Same, nil) }, Limits{Entries: 3}, isolation.ErrResourceExhausted},
		"no directory":   {func(w *Writer) error { return w.Tree(filepath.Join(dir, "none"), "/", Same, nil) }, Limits{}, isolation.ErrNotFound},
	} {
		if _, err := build(t, c.l, c.f); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestLinksAreNotFollowed: a link in a tree is a link on the disk, whatever it
// leads to.
func TestLinksAreNotFollowed(t *testing.T) {
	dir := source(t)
	f, err := build(t, Limits{}, func(w *Writer) error { return w.Tree(dir, "/", Same, nil) })
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("root:x:0")) {
		t.Error("the disk has the file that a link leads to")
	}
	img, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := fs.Lstat(img, "a/link"); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("a/link: %v, %v", info, err)
	}
}
