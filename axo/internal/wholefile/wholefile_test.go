package wholefile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation/axo/internal/wholefile"
)

func TestWrite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	// What was left is no hindrance, nor is its mode.
	if err := os.WriteFile(name+wholefile.Ending, []byte("half"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if err := wholefile.Write(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(name)
		info, serr := os.Stat(name)
		if err != nil || serr != nil || string(b) != text || info.Mode().Perm() != 0o600 {
			t.Errorf("%q, %v, %v, %v", b, info.Mode(), err, serr)
		}
	}
	if _, err := os.Lstat(name + wholefile.Ending); !os.IsNotExist(err) {
		t.Errorf("what was written before is there: %v", err)
	}
}

// TestWriteFails: what is there stays, and nothing else is left.
func TestWriteFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.MkdirAll(filepath.Join(dir, "f", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := wholefile.Write(filepath.Join(dir, "f"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if err := wholefile.Write(filepath.Join(dir, "none", "f"), nil, 0o600); !os.IsNotExist(err) {
		t.Errorf("in a directory that is not there: %v", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}
