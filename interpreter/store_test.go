package interpreter_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/interpreter"
)

const header = "\x00asm\x01\x00\x00\x00"

type entry struct{ name, body string }

// npm writes a package as npm pack does.
func npm(t testing.TB, entries ...entry) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.body))}
		if strings.HasPrefix(e.body, "->") {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, e.body[2:], 0
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(e.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return file(t, "package.tgz", b.String())
}

func file(t testing.TB, name, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func list(t testing.TB, s interpreter.Store) []interpreter.Interpreter {
	t.Helper()
	l, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAdd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "interpreters")
	s := interpreter.Open(dir)
	if l := list(t, s); len(l) != 0 {
		t.Errorf("a store that is not there: %v", l)
	}
	checked := ""
	o := interpreter.Options{
		Language: "python", File: npm(t, entry{"package/package.json", `{"name":"@a/py\u001b[31m","version":"3.1","license":"MIT"}`}, entry{"package/dist/python.wasm", header + "1"}),
		Check: func(_ context.Context, i interpreter.Interpreter) (string, error) {
			b, err := os.ReadFile(i.Path)
			checked = string(b)
			return "3.1.4", err
		},
	}
	i, err := s.Add(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if checked != header+"1" || i.Version != "3.1.4" || i.License != "MIT" || i.Source != "@a/py[31m@3.1" || i.Size != 9 || i.Added.IsZero() {
		t.Errorf("%+v", i)
	}
	l := list(t, s)
	if len(l) != 1 || l[0] != i {
		t.Errorf("%+v, added %+v", l, i)
	}
	// The same again, then another of the language in its place, and one beside.
	if _, err := s.Add(t.Context(), o); err != nil {
		t.Error(err)
	}
	if _, err := s.Add(t.Context(), interpreter.Options{Language: "python", File: file(t, "py.wasm", header+"2")}); err != nil {
		t.Error(err)
	}
	if _, err := s.Add(t.Context(), interpreter.Options{Language: "js", File: file(t, "js.wasm", header+"2"), Version: "9", License: "MIT"}); err != nil {
		t.Error(err)
	}
	l = list(t, s)
	if len(l) != 2 || l[0].Language != "js" || l[0].Version != "9" || l[1].Source != "py.wasm" || l[1].Version != "unknown" || l[1].License != "unknown" {
		t.Errorf("%+v", l)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if removed, err := s.Remove(l[1].Digest); err != nil || len(removed) != 2 {
		t.Errorf("both have the digest: %v %v", removed, err)
	}
	if _, err := s.Remove("js"); !errors.Is(err, isolation.ErrNotFound) {
		t.Errorf("removed what is not there: %v", err)
	}
	nothingLeft(t, dir)
}

func nothingLeft(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

// TestAddRefuses: what cannot be installed changes nothing.
func TestAddRefuses(t *testing.T) {
	dir := t.TempDir()
	s := interpreter.Open(dir)
	wasm := file(t, "m.wasm", header)
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		o    interpreter.Options
		want error
	}{
		"no file":          {nil, interpreter.Options{Language: "js", File: "/nonexistent"}, isolation.ErrNotFound},
		"directory":        {nil, interpreter.Options{Language: "js", File: t.TempDir()}, isolation.ErrInvalidArgument},
		"empty":            {nil, interpreter.Options{Language: "js", File: file(t, "e", "")}, isolation.ErrInvalidArgument},
		"text":             {nil, interpreter.Options{Language: "js", File: file(t, "e", "#!/bin/sh\n")}, isolation.ErrInvalidArgument},
		"component":        {nil, interpreter.Options{Language: "js", File: file(t, "e", "\x00asm\x0d\x00\x01\x00")}, isolation.ErrInvalidArgument},
		"language":         {nil, interpreter.Options{Language: "../x", File: wasm}, isolation.ErrInvalidArgument},
		"no language":      {nil, interpreter.Options{File: wasm}, isolation.ErrInvalidArgument},
		"member of a file": {nil, interpreter.Options{Language: "js", File: wasm, Member: "x"}, isolation.ErrInvalidArgument},
		"half a gzip":      {nil, interpreter.Options{Language: "js", File: file(t, "e", "\x1f\x8b\x08")}, isolation.ErrInvalidArgument},
		"no module":        {nil, interpreter.Options{Language: "js", File: npm(t, entry{"package/package.json", "{}"})}, isolation.ErrInvalidArgument},
		"not a module":     {nil, interpreter.Options{Language: "js", File: npm(t, entry{"package/a.wasm", "text"})}, isolation.ErrInvalidArgument},
		"link":             {nil, interpreter.Options{Language: "js", File: npm(t, entry{"package/a.wasm", "->/etc/passwd"})}, isolation.ErrInvalidArgument},
		"two modules":      {nil, interpreter.Options{Language: "js", File: npm(t, entry{"package/a.wasm", header}, entry{"package/b.wasm", header})}, isolation.ErrInvalidArgument},
		"no such member":   {nil, interpreter.Options{Language: "js", Member: "c.wasm", File: npm(t, entry{"package/a.wasm", header})}, isolation.ErrInvalidArgument},
		"canceled":         {canceled, interpreter.Options{Language: "js", File: wasm}, context.Canceled},
		"check": {nil, interpreter.Options{Language: "js", File: wasm, Check: func(context.Context, interpreter.Interpreter) (string, error) {
			return "", isolation.ErrInvalidArgument
		}}, isolation.ErrInvalidArgument},
	} {
		ctx := c.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		if _, err := s.Add(ctx, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	nothingLeft(t, dir)
	two := npm(t, entry{"package/a.wasm", header + "a"}, entry{"package/../../b.wasm", header + "b"}, entry{"/etc/x/b.wasm", header + "c"})
	if i, err := s.Add(t.Context(), interpreter.Options{Language: "js", File: two, Member: "a.wasm"}); err != nil || i.Size != 9 {
		t.Errorf("%+v %v", i, err)
	}
}

// TestDamaged: an entry that is not whole is listed with the reason and not used,
// and what a killed Add left is swept.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	s := interpreter.Open(dir)
	var paths []string
	for _, l := range []string{"a", "b", "c", "d"} {
		i, err := s.Add(t.Context(), interpreter.Options{Language: l, File: file(t, "m", header+l)})
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Dir(i.Path))
	}
	fix := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	fix(os.Remove(filepath.Join(paths[0], "interpreter.json")))
	fix(os.WriteFile(filepath.Join(paths[1], "interpreter.json"), []byte(`{"language":"z"}`), 0o600))
	fix(os.Truncate(filepath.Join(paths[2], "module.wasm"), 3))
	old := filepath.Join(dir, "tmp-1")
	fix(os.Mkdir(old, 0o700))
	fix(os.Chtimes(old, time.Time{}, time.Now().Add(-2*time.Hour)))
	for _, i := range list(t, s) {
		if (i.Broken == "") != (i.Language == "d") {
			t.Errorf("%+v", i)
		}
	}
	if u, err := s.Usable(); err != nil || len(u) != 1 || u[0].Language != "d" {
		t.Errorf("%+v %v", u, err)
	}
	for _, l := range []string{"a", "b", "c"} {
		if _, err := s.Add(t.Context(), interpreter.Options{Language: l, File: file(t, "m", header+l)}); err != nil {
			t.Errorf("in place of a damaged one: %v", err)
		}
	}
	if u, err := s.Usable(); err != nil || len(u) != 4 {
		t.Errorf("%+v %v", u, err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left over is still there: %v", err)
	}
}

// TestConcurrent: readers always see one whole interpreter while it is replaced.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	s := interpreter.Open(dir)
	files := []string{file(t, "a", header+"a"), file(t, "b", header+"b")}
	add := func(i int) {
		if _, err := s.Add(t.Context(), interpreter.Options{Language: "js", File: files[i%2]}); err != nil {
			t.Error(err)
		}
	}
	add(0)
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for i := range 100 {
			add(i + 1)
		}
	})
	for {
		select {
		case <-done:
			wg.Wait()
			return
		default:
		}
		u, err := s.Usable()
		if err != nil || len(u) != 1 || u[0].Size != 9 {
			t.Errorf("%+v %v", u, err)
		}
	}
}

// FuzzPackage adds what may be a package: it is installed whole or not at all.
func FuzzPackage(f *testing.F) {
	good, err := os.ReadFile(npm(f, entry{"package/package.json", `{"name":"a"}`}, entry{"package/a.wasm", header}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(header))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		s := interpreter.Open(dir)
		i, err := s.Add(t.Context(), interpreter.Options{Language: "js", File: file(t, "f", string(b))})
		if err != nil {
			nothingLeft(t, dir)
			return
		}
		if l := list(t, s); len(l) != 1 || l[0] != i || l[0].Broken != "" {
			t.Errorf("%+v, added %+v", l, i)
		}
	})
}
