package bench

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/driver/all"
	"github.com/axocoatl/isolation/image"
	"github.com/axocoatl/isolation/internal/testprog"
)

// BenchmarkColdImage is a new container on an image of one layer, against one on
// the host's system directories, and against the program on the host.
func BenchmarkColdImage(b *testing.B) {
	state, root := b.TempDir(), filepath.Join(b.TempDir(), "root.tar")
	if err := os.WriteFile(root, testprog.RootFS(b), 0o600); err != nil {
		b.Fatal(err)
	}
	s, err := image.Open(image.Config{Dir: filepath.Join(state, all.ImagesDir)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	if _, err := s.Import(context.Background(), root, image.ImportOptions{Name: "box"}); err != nil {
		b.Fatal(err)
	}
	reg, err := all.Registry(all.Config{StateDir: state, Guest: testprog.Guest(b)})
	if err != nil {
		b.Fatal(err)
	}
	var d isolation.Driver
	for _, r := range reg.All() {
		b.Cleanup(func() { r.Driver.Close() })
		if r.Driver.Name() == "builtin" {
			d = r.Driver
		}
	}
	n := 0
	run := func(root isolation.Root) func() {
		spec := limited
		spec.Root = root
		return func() {
			n++
			sb, err := d.Create(context.Background(), "image-"+strconv.Itoa(n), spec)
			if err != nil {
				b.Fatal(err)
			}
			must(b, sb, "/bin/busybox", "true")
			remove(b, sb)
		}
	}
	busybox := testprog.Busybox(b)
	both(b, plain("host", func() { command(b, busybox, "true") }), plain("system", run(isolation.Root{})), plain("image", run(isolation.Root{Image: "box"})))
}

// BenchmarkImport takes a root filesystem of 4,000 files and 100 MB, compressed
// with gzip, into a store: copied, verified, unpacked and synced. The floor is
// tar, which syncs nothing and verifies nothing.
func BenchmarkImport(b *testing.B) {
	rng := rand.NewChaCha8([32]byte{7})
	list := []testprog.RootEntry{}
	for i := range 4000 {
		body := make([]byte, 25<<10)
		_, _ = rng.Read(body[:12<<10]) // half of it compresses
		list = append(list, testprog.RootEntry{Header: tar.Header{Name: fmt.Sprintf("usr/%d/%d", i%100, i), Mode: 0o644}, Body: string(body)})
	}
	name := filepath.Join(b.TempDir(), "root.tar")
	if err := os.WriteFile(name, testprog.Tar(b, list...), 0o600); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("gzip", name).CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
	name += ".gz"
	into := b.TempDir()
	n := 0
	fresh := func(f func(dir string)) func(*testing.B) (func(), func()) {
		return func(b *testing.B) (func(), func()) {
			n++
			dir := filepath.Join(into, strconv.Itoa(n))
			if err := os.Mkdir(dir, 0o700); err != nil {
				b.Fatal(err)
			}
			return func() { f(dir) }, func() { os.RemoveAll(dir) }
		}
	}
	compare(b, 0, contender{"tar", fresh(func(dir string) { command(b, "tar", "-C", dir, "-xzf", name) })},
		contender{"import", fresh(func(dir string) {
			s, err := image.Open(image.Config{Dir: dir})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			if _, err := s.Import(context.Background(), name, image.ImportOptions{}); err != nil {
				b.Fatal(err)
			}
		})})
}
