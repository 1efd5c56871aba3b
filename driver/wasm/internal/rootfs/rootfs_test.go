package rootfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	esys "github.com/tetratelabs/wazero/experimental/sys"
)

// snapshot is what lies below a directory: names, kinds and contents.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		what := d.Type().String()
		switch {
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			what = fmt.Sprintf("%v %q", info.Mode(), b)
		case d.Type()&fs.ModeSymlink != 0:
			what, err = os.Readlink(path)
		}
		out[path] = what
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// must fails the test on the first error.
func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzOperations does operations of a guest's choosing, on paths of its
// choosing, in a directory full of ways out. What lies outside never changes
// and is never read; a read-only mount never changes at all; no more is written
// than the limit allows.
func FuzzOperations(f *testing.F) {
	f.Add([]byte("\x00../secret\x00\x01out/secret\x00"), false)
	f.Add([]byte("\x06../x\x00\x05out\x00\x02a\x00\x03/etc\x00"), false)
	f.Add([]byte("\x00abs\x00\x07dir/../../secret\x00\x04file\x00"), true)
	f.Add([]byte("\x08out\x00\x09file\x00\x0aup/secret\x00"), false)
	f.Fuzz(func(t *testing.T, script []byte, readOnly bool) {
		top := t.TempDir()
		in, out := filepath.Join(top, "in"), filepath.Join(top, "secrets")
		secret := filepath.Join(out, "secret")
		must(t, os.MkdirAll(filepath.Join(in, "dir"), 0o755), os.Mkdir(out, 0o755),
			os.WriteFile(secret, []byte("canary"), 0o644), os.WriteFile(filepath.Join(in, "file"), []byte("text"), 0o644),
			os.Symlink("../secrets", filepath.Join(in, "out")), os.Symlink(secret, filepath.Join(in, "abs")),
			os.Symlink("dir/../..", filepath.Join(in, "up")), os.Symlink("loop", filepath.Join(in, "loop")))
		outside, inside := snapshot(t, out), snapshot(t, in)
		root, err := os.OpenRoot(in)
		must(t, err)
		defer root.Close()
		const budget = 1000
		var l Limits
		l.Begin(budget, 4)
		m := New(root, readOnly, &l)
		before := "file"
		for range 32 {
			i := bytes.IndexByte(script, 0)
			if i < 0 {
				break
			}
			if i == 0 { // operation 0, its path follows
				script = append([]byte{16}, script[1:]...)
				continue
			}
			op, path := script[0]%11, string(script[1:i])
			script = script[i+1:]
			switch op {
			case 0, 1, 2, 3:
				flag := []esys.Oflag{esys.O_RDONLY, esys.O_RDWR | esys.O_CREAT, esys.O_WRONLY | esys.O_TRUNC, esys.O_RDWR | esys.O_APPEND}[op]
				file, e := m.OpenFile(path, flag, 0o644)
				if e != 0 {
					break
				}
				b := make([]byte, 64)
				if n, _ := file.Read(b); bytes.Contains(b[:n], []byte("canary")) {
					t.Errorf("read the secret by %q", path)
				}
				_, _ = file.Write(make([]byte, 300))
				_ = file.Truncate(int64(len(path)) * 10)
				_, _ = file.Readdir(10)
				_ = file.Close()
			case 4:
				_ = m.Mkdir(path, 0o755)
			case 5:
				_ = m.Rename(before, path)
			case 6:
				_ = m.Unlink(path)
			case 7:
				_ = m.Symlink(before, path)
			case 8:
				_ = m.Link(before, path)
			case 9:
				_ = m.Rmdir(path)
			case 10:
				_ = m.Chmod(path, 0o777)
				_ = m.Utimens(path, 0, 0)
				_, _ = m.Readlink(path)
				_, _ = m.Stat(path)
				_, _ = m.Lstat(path)
			}
			before = path
		}
		if after := snapshot(t, out); !maps.Equal(after, outside) {
			t.Errorf("outside: %v, was %v", after, outside)
		}
		after := snapshot(t, in)
		if readOnly && !maps.Equal(after, inside) {
			t.Errorf("read-only: %v, was %v", after, inside)
		}
		if l.Written.Load() > budget {
			t.Errorf("%d bytes written of %d", l.Written.Load(), budget)
		}
	})
}

func TestOpenFilesAreBounded(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "a"), nil, 0o600))
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	var l Limits
	l.Begin(0, 2)
	m := New(root, false, &l)
	var open []esys.File
	for range 2 {
		f, e := m.OpenFile("a", esys.O_RDONLY, 0)
		if e != 0 {
			t.Fatal(e)
		}
		open = append(open, f)
	}
	if _, e := m.OpenFile("a", esys.O_RDONLY, 0); e == 0 || l.FileHits.Load() != 1 {
		t.Errorf("a third file: %v, %d refusals counted", e, l.FileHits.Load())
	}
	if e := open[0].Close(); e != 0 {
		t.Fatal(e)
	}
	f, e := m.OpenFile("a", esys.O_RDONLY, 0)
	if e != 0 {
		t.Errorf("after one was closed: %v", e)
	} else {
		f.Close()
	}
	open[1].Close()
}
