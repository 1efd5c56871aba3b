package microvm_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/microvm"
	"github.com/axocoatl/isolation/image/disk"
)

// builder is one that has the tests' template alone.
type builder struct{}

func (builder) Inputs(context.Context, microvm.Recipe) (microvm.Inputs, error) {
	sum := sha256.Sum256(builtFor.Guest)
	return microvm.Inputs{Kernel: builtFor.KernelID, Guest: "sha256:" + hex.EncodeToString(sum[:]), Source: builtFor.SourceKey}, nil
}

func (builder) Build(context.Context, string, microvm.Recipe, microvm.Inputs, string) error {
	return errors.New("the template is there")
}

func (builder) WriteDirs(_ context.Context, f *os.File, temp string, sources []string, uid, gid int) error {
	w := disk.Create(f, temp, disk.Limits{})
	for i, s := range sources {
		if err := w.Tree(s, fmt.Sprintf("/%d", i), func(int, int) (int, int) { return uid, gid }, nil); err != nil {
			return err
		}
	}
	return w.Close()
}

// TestDirs: each machine has its own disk of directories, though all were
// restored from one that had none.
func TestDirs(t *testing.T) {
	c := config(t)
	c.Builder = builder{}
	d := newDriver(t, c)
	for i := range 2 {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "name"), fmt.Appendf(nil, "machine %d\n", i), 0o644); err != nil {
			t.Fatal(err)
		}
		sb := create(t, d, fmt.Sprint("dirs-", i), isolation.Spec{Mounts: []isolation.Mount{{Source: dir, Destination: "/data", ReadOnly: true}}})
		if out, e := sh(t, sb, "cat /data/name; touch /data/x 2>&1 | grep -c Read-only"); out != fmt.Sprintf("machine %d\n1\n", i) {
			t.Errorf("%v: %q", e, out)
		}
	}
	if list, err := filepath.Glob(filepath.Join(c.Templates, "*", "disk")); err != nil || len(list) != 1 {
		t.Errorf("disks %q, %v", list, err)
	}
}
