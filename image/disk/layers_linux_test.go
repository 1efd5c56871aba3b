package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/axocoatl/isolation"
)

// TestLayers: what is seen is what overlayfs would show.
func TestLayers(t *testing.T) {
	var dirs []string
	layer := func(files map[string]string) string {
		dir := t.TempDir()
		for name, data := range files {
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dirs = append(dirs, dir)
		return dir
	}
	base := layer(map[string]string{"same": "base", "over": "base", "gone": "base", "gone-too": "base", "d/x": "base", "d/y": "base", "opaque/x": "base", "gone-dir/x/y": "base", "was-dir/x": "base", "was-file": "base"})
	middle := layer(map[string]string{"over": "middle", "d/y": "middle", "opaque/new": "middle", "was-dir": "now a file", "was-file/x": "now a directory"})
	top := layer(map[string]string{"over": "top", "gone": "back"})
	unsupported := func(err error) {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
			t.Skipf("no whiteouts here: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"gone", "gone-dir"} {
		unsupported(unix.Mknod(filepath.Join(middle, name), unix.S_IFCHR, 0))
	}
	if err := os.WriteFile(filepath.Join(middle, "gone-too"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	unsupported(unix.Setxattr(filepath.Join(middle, "gone-too"), "user.overlay.whiteout", []byte("y"), 0))
	unsupported(unix.Setxattr(filepath.Join(middle, "opaque"), "user.overlay.opaque", []byte("y"), 0))
	if err := errors.Join(os.Chmod(filepath.Join(base, "d"), 0o700), os.Chmod(filepath.Join(middle, "d"), 0o711), os.Chmod(top, 0o751)); err != nil {
		t.Fatal(err)
	}
	f, err := build(t, Limits{}, func(w *Writer) error { return w.Layers(dirs, Same) })
	if err != nil {
		t.Fatal(err)
	}
	img, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = fs.WalkDir(img, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var b []byte
			b, err = fs.ReadFile(img, name)
			name += "=" + string(b)
		}
		got = append(got, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []string{".", "d", "d/x=base", "d/y=middle", "gone=back", "opaque", "opaque/new=middle", "over=top", "same=base", "was-dir=now a file", "was-file", "was-file/x=now a directory"}
	if !slices.Equal(got, want) {
		t.Errorf("there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for name, mode := range map[string]fs.FileMode{"d": 0o711, ".": 0o751} {
		if info, err := fs.Stat(img, name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, mode)
		}
	}
	if _, err := build(t, Limits{}, func(w *Writer) error { return w.Layers([]string{base + "/none"}, Same) }); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("a layer that is not there: %v", err)
	}
}
