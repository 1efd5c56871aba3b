//go:build unix

package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// liar is a sandbox's files as a hostile guest may tell of them.
type liar struct {
	files map[string]string
	dirs  map[string][]fs.FileInfo
}

type entry struct {
	name string
	mode fs.FileMode
}

func (e entry) Name() string       { return e.name }
func (e entry) Size() int64        { return 1 }
func (e entry) Mode() fs.FileMode  { return e.mode }
func (e entry) ModTime() time.Time { return time.Time{} }
func (e entry) IsDir() bool        { return e.mode.IsDir() }
func (e entry) Sys() any           { return nil }

func (l *liar) Stat(_ context.Context, name string) (fs.FileInfo, error) {
	if _, ok := l.dirs[name]; ok {
		return entry{path.Base(name), fs.ModeDir | 0o755}, nil
	}
	if _, ok := l.files[name]; ok {
		return entry{path.Base(name), 0o755}, nil
	}
	return nil, isolation.ErrNotFound
}

func (l *liar) ReadFile(_ context.Context, name string) (io.ReadCloser, error) {
	if l.files[name] == "endless" {
		return io.NopCloser(endless{}), nil
	}
	return io.NopCloser(strings.NewReader(l.files[name])), nil
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func (l *liar) WriteFile(_ context.Context, name string, _ fs.FileMode, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil {
		l.files[name] = string(b)
	}
	return err
}

func (l *liar) Remove(context.Context, string) error { return errors.ErrUnsupported }

func (l *liar) ReadDir(_ context.Context, name string) ([]fs.FileInfo, error) {
	return l.dirs[name], nil
}

func (l *liar) Mkdir(_ context.Context, name string, _ fs.FileMode) error {
	l.dirs[name] = nil
	return nil
}

func TestCopyOutOfALiar(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	l := &liar{
		files: map[string]string{"/f": "text", "/big": "endless", "/d/x": "x", "/d/s/y": "y"},
		dirs: map[string][]fs.FileInfo{
			"/d": {entry{"x", 0o644}, entry{"s", fs.ModeDir}}, "/d/s": {entry{"y", 0o4777}},
			"/up": {entry{"../secret", 0o644}}, "/dots": {entry{"..", fs.ModeDir}}, "/sub": {entry{"a/b", 0o644}}, "/none": {entry{"", 0o644}},
			"/link": {entry{"l", fs.ModeSymlink}}, "/dev": {entry{"sda", fs.ModeDevice}}, "/fifo": {entry{"p", fs.ModeNamedPipe}},
			"/twice": {entry{"a", 0o644}, entry{"a", 0o644}},
		},
	}
	// A directory in itself has no end.
	l.dirs["/deep"] = []fs.FileInfo{entry{"deep", fs.ModeDir}}
	for name := "/deep"; len(name) < 1000; {
		name += "/deep"
		l.dirs[name] = l.dirs["/deep"]
	}
	copyTo := func(guest, host string) error {
		c := copier{files: l, most: 1 << 20}
		return c.out(context.Background(), Copy{Guest: guest, Host: filepath.Join(out, host)})
	}
	for _, guest := range []string{"/up", "/dots", "/sub", "/none", "/link", "/dev", "/fifo", "/twice", "/deep", "/big", "/missing"} {
		if err := copyTo(guest, "x"); err == nil {
			t.Errorf("%s: no error", guest)
		}
		if list, err := os.ReadDir(out); err != nil || len(list) > 0 {
			t.Errorf("%s left %v, %v", guest, list, err)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Fatalf("%q %v", b, err)
	}
	// A link in the place of a file is replaced, not followed.
	if err := os.Symlink(secret, filepath.Join(out, "f")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(copyTo("/f", "f"), copyTo("/d", "d")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"f": "text", "d/x": "x", "d/s/y": "y", "../secret": "secret"} {
		if b, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if info, err := os.Stat(filepath.Join(out, "d/s/y")); err != nil || info.Mode() != 0o755 {
		t.Errorf("mode %v, %v: a set-user-ID bit counts for nothing", info.Mode(), err)
	}
}

func TestCopyIn(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "d/s"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "d/x", "d/s/y"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	in := func(host, guest string) (*liar, error) {
		l := &liar{files: map[string]string{}, dirs: map[string][]fs.FileInfo{}}
		c := copier{files: l, most: 10}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		return l, c.in(context.Background(), root, host, guest, 0)
	}
	l, err := in("d", "/scratch/d")
	if err != nil || l.files["/scratch/d/x"] != "d/x" || l.files["/scratch/d/s/y"] != "d/s/y" || len(l.files) != 2 {
		t.Errorf("%v %v", l, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), bytes.Repeat([]byte("x"), 11), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := in("big", "/b"); !errors.Is(err, isolation.ErrResourceExhausted) {
		t.Errorf("too much: %v", err)
	}
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(dir, "d/link")), syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "fifo"} {
		if _, err := in(name, "/x"); !errors.Is(err, isolation.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckCopies(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Symlink(file, filepath.Join(dir, "l"))); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]Request{
		"no host": {CopyIn: []Copy{{Guest: "/x"}}}, "relative": {CopyIn: []Copy{{Host: file, Guest: "x"}}}, "root": {CopyIn: []Copy{{Host: file, Guest: "/x/.."}}},
		"missing": {CopyIn: []Copy{{Host: file + "x", Guest: "/x"}}}, "link": {CopyIn: []Copy{{Host: filepath.Join(dir, "l"), Guest: "/x"}}},
		"out to nowhere": {CopyOut: []Copy{{Host: filepath.Join(dir, "no/x"), Guest: "/x"}}}, "out to a directory": {CopyOut: []Copy{{Host: dir, Guest: "/x"}}},
	} {
		if err := checkCopies(r.CopyIn, r.CopyOut); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := checkCopies([]Copy{{Host: file, Guest: "/x"}}, []Copy{{Host: file, Guest: "/x"}}); err != nil {
		t.Error(err)
	}
}
