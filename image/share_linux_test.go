package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/axocoatl/isolation"
)

func init() {
	// share DIR ROUNDS SEED REF...: pulls, uses, removes and collects, over and
	// over.
	helpers["share"] = func(args []string) error {
		rounds, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		seed, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		refs := args[3:]
		ctx := context.Background()
		for n := range rounds {
			s, err := Open(Config{Dir: args[0]})
			if err != nil {
				return err
			}
			ref := refs[(seed+n)%len(refs)]
			img, err := s.Pull(ctx, ref, PullOptions{Keychain: anonymous})
			if err != nil {
				return fmt.Errorf("round %d: %w", n, err)
			}
			r, err := s.RootFS(ctx, img)
			if errors.Is(err, isolation.ErrNotFound) {
				continue // another process has removed it
			} else if err != nil {
				return fmt.Errorf("round %d: %w", n, err)
			}
			if n%2 == 0 {
				if _, err := s.Remove(ctx, ref); err != nil && !errors.Is(err, isolation.ErrNotFound) {
					return err
				}
				if _, err := s.GC(ctx, GCOptions{KeepPartial: n%4 == 0}); err != nil {
					return fmt.Errorf("round %d: %w", n, err)
				}
			}
			// What is leased is there, whatever the others did.
			for i, dir := range r.Layers {
				b, err := os.ReadFile(filepath.Join(dir, "file"))
				if err != nil || len(b) != 1000 || b[0] != byte('a'+i) {
					return fmt.Errorf("round %d, layer %d: %.10q %w", n, i, b, err)
				}
			}
			if n%3 != 0 { // some leases end with the process
				r.Release()
			}
			if err := s.Close(); err != nil {
				return err
			}
		}
		return nil
	}
	// hold DIR REF: takes a lease and says so, and keeps it until it is killed.
	helpers["hold"] = func(args []string) error {
		s, err := Open(Config{Dir: args[0]})
		if err != nil {
			return err
		}
		img, err := s.Get(args[1])
		if err != nil {
			return err
		}
		r, err := s.RootFS(context.Background(), img)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(r.Layers); err != nil {
			return err
		}
		select {}
	}
}

// TestManyProcesses pull, remove and collect in one store at the same time, and
// find what they have leased.
func TestManyProcesses(t *testing.T) {
	reg := newRegistry(t)
	base := gzLayer(t, mkTar(t, ent{name: "file", body: strings.Repeat("a", 1000)}))
	refs := []string{}
	for i := range 3 {
		top := gzLayer(t, mkTar(t, ent{name: "file", body: strings.Repeat("b", 1000)}, ent{name: fmt.Sprint("own", i)}))
		refs = append(refs, reg.push(t, fmt.Sprintf("p%d:1", i), mkImage(t, "", base, top)))
	}
	s := newStore(t, Limits{})
	done := make(chan error)
	const processes = 4
	for i := range processes {
		go func() {
			cmd := helper(t, "share", append([]string{s.dir, "25", strconv.Itoa(i)}, refs...)...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			done <- err
		}()
	}
	for range processes {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	whole(t, s)
	vanishes(t, s)
}

// TestLeaseEndsWithItsProcess, and not before.
func TestLeaseEndsWithItsProcess(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "held:1", mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "f"}))))
	s := newStore(t, Limits{})
	img := pull(t, s, ref)
	cmd := helper(t, "hold", s.dir, ref)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var layers []string
	if err := json.NewDecoder(out).Decode(&layers); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(context.Background(), img.Digest); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.GC(context.Background(), GCOptions{}); err != nil || freed.Layers != 0 {
		t.Errorf("%+v %v", freed, err)
	}
	if _, err := os.Stat(filepath.Join(layers[0], "f")); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	freed, err := s.GC(context.Background(), GCOptions{})
	if err != nil || freed.Layers != 1 || freed.Blobs != 3 {
		t.Errorf("%+v %v", freed, err)
	}
	vanishes(t, s)
}

// TestDamagedStore: what is missing is an error, never something else.
func TestDamagedStore(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "d:1", mkImage(t, "", gzLayer(t, mkTar(t, ent{name: "f"}))))
	s := newStore(t, Limits{})
	img := pull(t, s, ref)
	layer := s.layerPath(img.Layers[0])
	if err := removeTree(layer); err != nil {
		t.Fatal(err)
	}
	r := rootFS(t, s, img) // unpacked again
	r.Release()
	if err := errors.Join(removeTree(layer), os.Remove(s.blobPath(img.blobs[2]))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RootFS(context.Background(), img); !errors.Is(err, isolation.ErrFailedPrecondition) || !strings.Contains(err.Error(), "pull or import") {
		t.Error(err)
	}
	if err := os.WriteFile(s.blobPath(img.blobs[2]), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RootFS(context.Background(), img); !errors.Is(err, ErrDigest) && !errors.Is(err, isolation.ErrInvalidArgument) {
		t.Error(err)
	}
	if err := os.WriteFile(s.blobPath(img.blobs[1]), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ref); !errors.Is(err, ErrDigest) {
		t.Error(err)
	}
	if err := os.WriteFile(s.path(fileIndex), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
	// Nothing is thrown away on the word of a damaged index.
	if _, err := s.GC(context.Background(), GCOptions{}); err == nil {
		t.Error("gc with a damaged index")
	}
	if _, err := os.Stat(s.blobPath(img.Digest)); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: s.dir}); !errors.Is(err, isolation.ErrFailedPrecondition) {
		t.Errorf("others can read the store: %v", err)
	}
}
