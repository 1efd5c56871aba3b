package wasm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestSealOfArtefact changes an artefact of several pieces in every way that its
// MAC must notice.
func TestSealOfArtefact(t *testing.T) {
	c, err := openCache(filepath.Join(t.TempDir(), "cache"), 1<<30, descriptions[Wasmtime].layout)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	content := make([]byte, 3*pieceSize+1)
	rand.Read(content)
	k := key(sha256.Sum256(content))
	seal := func() string {
		t.Helper()
		c.close()
		tmp := c.temp()
		if err := os.Mkdir(tmp, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, c.layout.module), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := c.put(k, tmp, meta{MinMemory: 1}); err != nil || a.bytes != int64(len(content)) {
			t.Fatal(a, err)
		}
		c.close()
		return filepath.Join(c.dir, k.String())
	}
	seal()
	if c.get(k) == nil {
		t.Fatal("a good artefact is refused")
	}
	swapped := bytes.Clone(content)
	copy(swapped, content[pieceSize:2*pieceSize])
	copy(swapped[pieceSize:], content[:pieceSize])
	flip := func(at int) []byte {
		b := bytes.Clone(content)
		b[at] ^= 1
		return b
	}
	for name, b := range map[string][]byte{
		"first byte": flip(0), "last byte": flip(len(content) - 1), "middle": flip(pieceSize), "pieces exchanged": swapped,
		"shorter": content[:len(content)-1], "a piece less": content[:2*pieceSize], "longer": append(bytes.Clone(content), 0), "empty": {},
	} {
		if err := os.WriteFile(filepath.Join(seal(), c.layout.module), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if c.get(k) != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, edit := range map[string][2]string{
		"meta": {`"min_memory":1`, `"min_memory":2`}, "nonce": {`"nonce":"`, `"nonce":"00`}, "no nonce": {`"nonce"`, `"none"`},
	} {
		file := filepath.Join(seal(), "meta.json")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Replace(b, []byte(edit[0]), []byte(edit[1]), 1)
		if bytes.Equal(b, changed) {
			t.Fatal(name, "is not in", string(b))
		}
		if err := os.WriteFile(file, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if c.get(k) != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestCompileWorkerLaysLinks is what a compile worker that a module has taken over
// could leave in its directory: the host must write nowhere else.
func TestCompileWorkerLaysLinks(t *testing.T) {
	c, err := openCache(filepath.Join(t.TempDir(), "cache"), 1<<30, descriptions[Wasmtime].layout)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, lay := range map[string]func(dir string) error{
		"link":         func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "meta.json")) },
		"link to none": func(dir string) error { return os.Symlink(outside+"2", filepath.Join(dir, "meta.json")) },
		"file":         func(dir string) error { return os.WriteFile(filepath.Join(dir, "meta.json"), nil, 0o600) },
		"module is a link": func(dir string) error {
			module := filepath.Join(dir, c.layout.module)
			return errors.Join(os.Remove(module), os.Symlink(outside, module))
		},
		"module is a directory": func(dir string) error {
			module := filepath.Join(dir, c.layout.module)
			return errors.Join(os.Remove(module), os.Mkdir(module, 0o700))
		},
	} {
		tmp := c.temp()
		if err := os.Mkdir(tmp, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, c.layout.module), []byte("code"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := lay(tmp); err != nil {
			t.Fatal(err)
		}
		if _, err := c.put(key{1}, tmp, meta{}); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := os.Lstat(tmp); err == nil {
			t.Errorf("%s: the directory is left", name)
		}
		if b, err := os.ReadFile(outside); err != nil || string(b) != "kept" {
			t.Errorf("%s: a file outside now has %q (%v)", name, b, err)
		}
		if _, err := os.Lstat(outside + "2"); err == nil {
			t.Fatalf("%s: a file was made outside", name)
		}
	}
}
