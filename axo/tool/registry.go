package tool

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/axo/internal/wholefile"
)

// Registry keeps tools in a directory: objects by digest, and an index of names and
// versions. What is in the index is whole. It is safe for concurrent use, of several
// processes too.
type Registry struct {
	dir string

	mu     sync.Mutex
	seen   os.FileInfo     // of the index that was read; guarded by mu
	index  index           // guarded by mu
	loaded map[string]Tool // by digest; guarded by mu
}

// index has a list of versions for each name; the last one is what the name alone is.
type index struct {
	Tools map[string][]version `json:"tools"`
}

type version struct {
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

const (
	indexFile  = "index.json"
	recordFile = "record.json"
	objectsDir = "objects"
	moduleFile = "module.wasm"
	tempPrefix = ".adding-"
)

// Open opens the registry in a directory, which is made when something is added.
func Open(dir string) (*Registry, error) {
	dir, err := filepath.Abs(dir)
	return &Registry{dir: dir, loaded: map[string]Tool{}}, err
}

// AddOptions are of Add.
type AddOptions struct {
	// Replace lets other content take a version's place.
	Replace bool
	// Prepare tries what was staged, and makes ready what its first call needs. It may
	// set ImageDigest and RanIn. An error keeps the tool out. nil: nothing is tried.
	Prepare func(ctx context.Context, staged *Tool) error
	Now     func() time.Time // nil: time.Now
}

// Add takes a tool: a directory with a tool.toml, or such a file. A signature beside it
// (tool.toml.sig) has to be good. After an error
// nothing of it is here. The same content again is what it was, and is tried anew; other content under
// a version that is there is AlreadyExists, unless it is to replace that.
func (r *Registry) Add(ctx context.Context, name string, o AddOptions) (Tool, error) {
	p, err := parse(name)
	if err != nil {
		return Tool{}, err
	}
	if err := os.MkdirAll(filepath.Join(r.dir, objectsDir), 0o700); err != nil {
		return Tool{}, err
	}
	unlock, err := lock(filepath.Join(r.dir, "lock"))
	if err != nil {
		return Tool{}, err
	}
	defer unlock()
	r.removeTemps()
	temp := filepath.Join(r.dir, tempPrefix+rand.Text())
	if err := os.Mkdir(temp, 0o700); err != nil {
		return Tool{}, err
	}
	defer os.RemoveAll(temp)
	t := Tool{Manifest: p.Manifest, dir: temp}
	var sums map[string][]byte
	if t.Digest, sums, err = stage(ctx, p, temp); err != nil {
		return Tool{}, err
	}
	if sum := sums[moduleFile]; sum != nil {
		t.ModuleDigest = "sha256:" + hex.EncodeToString(sum)
	}
	if t.SignedBy, err = p.signer(sums); err != nil {
		return Tool{}, err
	}
	x, err := r.read()
	if err != nil {
		return Tool{}, err
	}
	for _, v := range x.Tools[p.Name] {
		if v.Version == p.Version && v.Digest != t.Digest && !o.Replace {
			return Tool{}, fmt.Errorf("%s is there, and is something else (%.19s...): give it another version, or replace it: %w", t.Ref(), v.Digest, isolation.ErrAlreadyExists)
		}
	}
	if o.Prepare != nil {
		if err := o.Prepare(ctx, &t); err != nil {
			return Tool{}, fmt.Errorf("tool %s: %s: %w", t.Ref(), p.at(p.entrypointKey()), err)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t.Added = o.Now().UTC()
	return r.commit(t, x)
}

// stage copies the files of a tool, and returns the digest of all: of a list of the
// files' names and digests, in the order of names, and of the manifest as it is meant, with
// the schemas and paths that it names. sums has the files' digests.
func stage(ctx context.Context, p parsed, dir string) (digest string, sums map[string][]byte, err error) {
	meant, err := json.Marshal(p.Manifest)
	if err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, ManifestFile), p.text, 0o600); err != nil {
		return "", nil, err
	}
	sums = map[string][]byte{}
	sum := sha256.Sum256(meant)
	sums["manifest"] = sum[:]
	for name, from := range p.files {
		if err := ctx.Err(); err != nil {
			return "", nil, err
		}
		if sums[name], err = copyFile(filepath.Join(dir, name), from); err != nil {
			return "", nil, fmt.Errorf("take %s: %w", from, err)
		}
	}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(h, "%s %x\n", name, sums[name])
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), sums, nil
}

func copyFile(to, from string) (sum []byte, err error) {
	in, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(in, maxFile+1))
	if err == nil && n > maxFile {
		err = fmt.Errorf("it has more than %d bytes: %w", maxFile, isolation.ErrInvalidArgument)
	}
	if err == nil {
		err = out.Sync()
	}
	return h.Sum(nil), errors.Join(err, out.Close())
}

// commit puts a staged tool where it is found.
func (r *Registry) commit(t Tool, x index) (Tool, error) {
	b, err := json.MarshalIndent(t, "", "\t")
	if err != nil {
		return t, err
	}
	if err := os.WriteFile(filepath.Join(t.dir, recordFile), b, 0o600); err != nil {
		return t, err
	}
	final := r.object(t.Digest)
	// An object that is there already has the same files; its record may be older.
	if err := os.Rename(t.dir, final); err != nil {
		if _, serr := os.Stat(final); serr != nil {
			return t, err
		}
		if err := os.Rename(filepath.Join(t.dir, recordFile), filepath.Join(final, recordFile)); err != nil {
			return t, err
		}
	}
	t.dir = final
	r.mu.Lock()
	delete(r.loaded, t.Digest)
	r.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(x.Tools[t.Manifest.Name]), func(v version) bool { return v.Version == t.Manifest.Version })
	x.Tools[t.Manifest.Name] = append(list, version{t.Manifest.Version, t.Digest})
	if err := r.write(x); err != nil {
		return t, err
	}
	return t, r.removeUnnamed(x)
}

func (r *Registry) object(digest string) string {
	return filepath.Join(r.dir, objectsDir, strings.TrimPrefix(digest, "sha256:"))
}

// read returns the index as it is on disk.
func (r *Registry) read() (index, error) {
	x := index{Tools: map[string][]version{}}
	b, err := os.ReadFile(filepath.Join(r.dir, indexFile))
	if errors.Is(err, os.ErrNotExist) {
		return x, nil
	} else if err != nil {
		return x, err
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return x, fmt.Errorf("tools: %s: %w", indexFile, err)
	}
	if x.Tools == nil {
		x.Tools = map[string][]version{}
	}
	return x, nil
}

func (r *Registry) write(x index) error {
	b, err := json.MarshalIndent(x, "", "\t")
	if err != nil {
		return err
	}
	return wholefile.Write(filepath.Join(r.dir, indexFile), b, 0o600)
}

// removeTemps removes what an Add that was killed has left. The lock is held.
func (r *Registry) removeTemps() {
	left, _ := filepath.Glob(filepath.Join(r.dir, tempPrefix+"*")) // the pattern is right
	for _, name := range left {
		_ = os.RemoveAll(name) // the next one tries again
	}
}

// removeUnnamed removes objects that no name leads to. The lock is held.
func (r *Registry) removeUnnamed(x index) error {
	named := map[string]bool{}
	for _, list := range x.Tools {
		for _, v := range list {
			named[filepath.Base(r.object(v.Digest))] = true
		}
	}
	entries, err := os.ReadDir(filepath.Join(r.dir, objectsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !named[e.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(r.dir, objectsDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// current returns the index, read again only when it has changed.
func (r *Registry) current() (index, error) {
	info, err := os.Stat(filepath.Join(r.dir, indexFile))
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, os.ErrNotExist) {
		r.index, r.seen = index{}, nil
		return r.index, nil
	} else if err != nil {
		return index{}, err
	}
	if r.seen != nil && os.SameFile(info, r.seen) && info.ModTime().Equal(r.seen.ModTime()) && info.Size() == r.seen.Size() {
		return r.index, nil
	}
	x, err := r.read()
	if err == nil {
		r.index, r.seen = x, info
	}
	return x, err
}

// Changed reports whether the index is another one than when this was asked last, or
// anything of it was.
func (r *Registry) Changed() bool {
	info, err := os.Stat(filepath.Join(r.dir, indexFile))
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		return r.seen != nil
	}
	return r.seen == nil || !os.SameFile(info, r.seen) || !info.ModTime().Equal(r.seen.ModTime())
}

// Get finds a tool: by name, which is the version that was added last, by
// name@version, or by digest. One that is not there is NotFound.
func (r *Registry) Get(ref string) (Tool, error) {
	x, err := r.current()
	if err != nil {
		return Tool{}, err
	}
	if list := find(x, ref); len(list) > 0 {
		return r.load(list[len(list)-1].Digest)
	}
	return Tool{}, fmt.Errorf("no tool %.200q: %w", ref, isolation.ErrNotFound)
}

// find returns the versions that a reference means.
func find(x index, ref string) []version {
	if strings.HasPrefix(ref, "sha256:") {
		for _, list := range x.Tools {
			for _, v := range list {
				if v.Digest == ref {
					return []version{v}
				}
			}
		}
		return nil
	}
	name, want, one := strings.Cut(ref, "@")
	if !one {
		return x.Tools[name]
	}
	i := slices.IndexFunc(x.Tools[name], func(v version) bool { return v.Version == want })
	if i < 0 {
		return nil
	}
	return x.Tools[name][i : i+1]
}

func (r *Registry) load(digest string) (Tool, error) {
	r.mu.Lock()
	t, ok := r.loaded[digest]
	r.mu.Unlock()
	if ok {
		return t, nil
	}
	dir := r.object(digest)
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err == nil && t.Digest != digest {
		err = errors.New("its record is another tool's")
	}
	if err != nil {
		return t, fmt.Errorf("tool %.19s: %w", digest, err)
	}
	t.dir = dir
	r.mu.Lock()
	r.loaded[digest] = t
	r.mu.Unlock()
	return t, nil
}

// List returns the tools: of each name the version that was added last, or every one,
// by name. One that cannot be read is an error beside the others.
func (r *Registry) List(all bool) ([]Tool, error) {
	x, err := r.current()
	if err != nil {
		return nil, err
	}
	var out []Tool
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(x.Tools)) {
		list := x.Tools[name]
		if !all && len(list) > 0 {
			list = list[len(list)-1:]
		}
		for _, v := range list {
			t, err := r.load(v.Digest)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			out = append(out, t)
		}
	}
	return out, errors.Join(errs...)
}

// Remove removes what a reference means; of a name alone every version. It returns
// their references.
func (r *Registry) Remove(ref string) ([]string, error) {
	if _, err := os.Stat(r.dir); err != nil {
		return nil, fmt.Errorf("no tool %.200q: %w", ref, isolation.ErrNotFound)
	}
	unlock, err := lock(filepath.Join(r.dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	x, err := r.read()
	if err != nil {
		return nil, err
	}
	gone := find(x, ref)
	if len(gone) == 0 {
		return nil, fmt.Errorf("no tool %.200q: %w", ref, isolation.ErrNotFound)
	}
	gone = slices.Clone(gone)
	var removed []string
	for name, list := range x.Tools {
		left := []version{}
		for _, v := range list {
			if slices.Contains(gone, v) {
				removed = append(removed, name+"@"+v.Version)
			} else {
				left = append(left, v)
			}
		}
		if x.Tools[name] = left; len(left) == 0 {
			delete(x.Tools, name)
		}
	}
	slices.SortFunc(removed, cmp.Compare)
	if err := r.write(x); err != nil {
		return nil, err
	}
	return removed, r.removeUnnamed(x)
}
