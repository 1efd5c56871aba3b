//go:build unix

package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
)

// tree writes files, by name, below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// shown is what is below a directory: "a=text b/ b/c -> /x".
func shown(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, name)
		switch {
		case err != nil || rel == ".":
		case d.IsDir():
			rel += "/"
		case d.Type() == fs.ModeSymlink:
			to, _ := os.Readlink(name)
			rel += " -> " + to
		default:
			b, rerr := os.ReadFile(name)
			rel, err = rel+"="+string(b), rerr
		}
		if rel != "." {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func syncOut(t *testing.T, dir string, before map[string]fs.FileInfo, l *liar) error {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s := &synced{guest: "/w", root: root, before: before}
	return s.out(context.Background(), &copier{files: l, most: 1 << 20})
}

// TestSyncOut: what changed is changed, what went goes, and what the sandbox never
// knew of stays.
func TestSyncOut(t *testing.T) {
	dir := tree(t, map[string]string{"same": "host", "edited": "old", "gone": "x", "d/gone": "x", "e/gone": "x", "e/new-on-host": "mine", "file-now-dir": "x", "dir-now-file/x": "x"})
	file, d := entry{mode: 0o644}, entry{mode: fs.ModeDir | 0o755}
	before := map[string]fs.FileInfo{
		"same": file, "edited": entry{mode: 0o600}, "gone": file, "d": d, "d/gone": file, "e": d, "e/gone": file, "file-now-dir": file, "dir-now-file": d, "dir-now-file/x": file,
	}
	l := &liar{
		files: map[string]string{"/w/same": "guest", "/w/edited": "new", "/w/n/x": "made", "/w/dir-now-file": "f", "/w/file-now-dir/y": "y"},
		dirs: map[string][]fs.FileInfo{
			"/w":              {entry{"same", 0o644}, entry{"edited", 0o644}, entry{"n", fs.ModeDir}, entry{"dir-now-file", 0o644}, entry{"file-now-dir", fs.ModeDir}},
			"/w/n":            {entry{"x", 0o4755}},
			"/w/file-now-dir": {entry{"y", 0o644}},
		},
	}
	if err := syncOut(t, dir, before, l); err != nil {
		t.Fatal(err)
	}
	if got, want := shown(t, dir), "dir-now-file=f e/ e/new-on-host=mine edited=new file-now-dir/ file-now-dir/y=y n/ n/x=made same=host"; got != want {
		t.Errorf("there is\n%s\nwant\n%s", got, want)
	}
	if info, err := os.Stat(filepath.Join(dir, "n/x")); err != nil || info.Mode() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestSyncOutOfALiar: a hostile sandbox changes nothing, and a link on the host is
// replaced and not followed.
func TestSyncOutOfALiar(t *testing.T) {
	other := tree(t, map[string]string{"secret": "secret"})
	for name, entries := range map[string][]fs.FileInfo{
		"up": {entry{"../secret", 0o644}}, "dots": {entry{"..", fs.ModeDir}}, "sub": {entry{"a/b", 0o644}}, "none": {entry{"", 0o644}},
		"link": {entry{"l", fs.ModeSymlink}}, "device": {entry{"sda", fs.ModeDevice}}, "fifo": {entry{"p", fs.ModeNamedPipe}}, "endless": {entry{"big", 0o644}},
	} {
		dir := tree(t, map[string]string{"kept": "kept", "went": "x"})
		l := &liar{files: map[string]string{"/w/big": "endless"}, dirs: map[string][]fs.FileInfo{"/w": entries}}
		if err := syncOut(t, dir, map[string]fs.FileInfo{"went": entry{mode: 0o644}}, l); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := shown(t, dir); got != "kept=kept went=x" {
			t.Errorf("%s: there is %s", name, got)
		}
	}
	l := &liar{files: map[string]string{}, dirs: map[string][]fs.FileInfo{}}
	for i := range copyEntries + 1 {
		l.dirs["/w"] = append(l.dirs["/w"], entry{fmt.Sprint(i), fs.ModeDir})
	}
	if err := syncOut(t, t.TempDir(), nil, l); !errors.Is(err, isolation.ErrResourceExhausted) {
		t.Errorf("too many: %v", err)
	}
	dir := t.TempDir()
	if err := errors.Join(os.Symlink(filepath.Join(other, "secret"), filepath.Join(dir, "f")), os.Symlink(other, filepath.Join(dir, "d"))); err != nil {
		t.Fatal(err)
	}
	l = &liar{
		files: map[string]string{"/w/f": "new", "/w/d/secret": "stolen"},
		dirs:  map[string][]fs.FileInfo{"/w": {entry{"f", 0o644}, entry{"d", fs.ModeDir}}, "/w/d": {entry{"secret", 0o644}}},
	}
	if err := syncOut(t, dir, nil, l); err != nil {
		t.Fatal(err)
	}
	if got := shown(t, dir) + " " + shown(t, other); got != "d/ d/secret=stolen f=new secret=secret" {
		t.Errorf("there is %s", got)
	}
}

// TestSyncOfWhatIsThereTwice: a directory that is listed many times, and below it
// again, is no way to have the host look for ever.
func TestSyncOfWhatIsThereTwice(t *testing.T) {
	l := &liar{dirs: map[string][]fs.FileInfo{}}
	for range 10_000 {
		l.dirs["/w"] = append(l.dirs["/w"], entry{"a", fs.ModeDir})
	}
	for name, depth := "/w", 0; depth < copyDepth; depth++ {
		name += "/a"
		l.dirs[name] = l.dirs["/w"]
	}
	done := make(chan error, 1)
	go func() { done <- syncOut(t, t.TempDir(), nil, l) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it was believed")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the host still looks")
	}
}

// TestSyncLeavesWhatIsOthers: what somebody has put in a directory meanwhile does
// not go with the directory.
func TestSyncLeavesWhatIsOthers(t *testing.T) {
	dir := tree(t, map[string]string{"d/known": "x", "d/of-the-host": "mine"})
	l := &liar{files: map[string]string{"/w/d": "file"}, dirs: map[string][]fs.FileInfo{"/w": {entry{"d", 0o644}}}}
	before := map[string]fs.FileInfo{"d": entry{mode: fs.ModeDir}, "d/known": entry{mode: 0o644}}
	if err := syncOut(t, dir, before, l); err == nil {
		t.Error("there is no error")
	}
	if got := shown(t, dir); got != "d/ d/of-the-host=mine" {
		t.Errorf("there is %s", got)
	}
}

func TestCheckSync(t *testing.T) {
	dir := tree(t, map[string]string{"f": ""})
	for name, c := range map[string]Copy{
		"no host": {Guest: "/x"}, "relative": {Host: dir, Guest: "x"}, "root": {Host: dir, Guest: "/x/.."}, "missing": {Host: dir + "x", Guest: "/x"}, "file": {Host: filepath.Join(dir, "f"), Guest: "/x"},
	} {
		if err := checkSync(Request{Sync: []Copy{c}}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := checkSync(Request{Sync: []Copy{{Host: dir, Guest: "/x"}}}); err != nil {
		t.Error(err)
	}
}
