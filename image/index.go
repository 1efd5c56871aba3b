package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/axocoatl/isolation"
)

// index is the file that says what is there.
type index struct {
	Version int               `json:"version"`
	Images  map[string]record `json:"images"` // by digest of the manifest
	Names   map[string]string `json:"names"`  // to digests of manifests
}

type record struct {
	Index    string    `json:"index,omitempty"`
	Config   string    `json:"config"`
	Blobs    []string  `json:"blobs"` // config and layers
	Layers   []DiffID  `json:"layers"`
	Platform string    `json:"platform"`
	Size     int64     `json:"size"`
	Unpacked int64     `json:"unpacked"`
	Added    time.Time `json:"added"`
}

const indexVersion = 1

// readIndex reads the index. It is replaced as a whole, so no lock is needed.
func (s *Store) readIndex() (*index, error) {
	x := &index{Version: indexVersion, Images: map[string]record{}, Names: map[string]string{}}
	b, err := os.ReadFile(s.path(fileIndex))
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	} else if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := json.Unmarshal(b, x); err != nil {
		return nil, fmt.Errorf("image store: %s is damaged: %w", s.path(fileIndex), err)
	}
	if x.Version != indexVersion {
		return nil, fmt.Errorf("image store: %s has version %d, this program reads %d: %w", s.path(fileIndex), x.Version, indexVersion, isolation.ErrFailedPrecondition)
	}
	return x, nil
}

// change rewrites the index under the store's lock.
func (s *Store) change(ctx context.Context, edit func(*index) error) error {
	if _, err := s.work(); err != nil { // it takes the same lock
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	if err := edit(x); err != nil {
		return err
	}
	b, err := json.MarshalIndent(x, "", " ")
	if err != nil {
		return err
	}
	if err := s.writeFile(s.path(fileIndex), append(b, '\n')); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return nil
}

// defaultRegistry is what the registry library makes of "docker.io".
const defaultRegistry = name.DefaultRegistry

// maxName is a registry, a repository of 255 bytes, a tag of 128 and a digest.
const maxName = 1024

// parseName parses a reference. Without a registry it is docker.io's, without a
// tag "latest".
func parseName(ref string, opts ...name.Option) (name.Reference, error) {
	if len(ref) > maxName {
		return nil, fmt.Errorf("%.80q... is no image name: it has %d bytes, %d are the most: %w", ref, len(ref), maxName, isolation.ErrInvalidArgument)
	}
	r, err := name.ParseReference(ref, append(opts, name.WeakValidation)...)
	if err != nil {
		return nil, fmt.Errorf("%q is no image name: %w: %w", ref, isolation.ErrInvalidArgument, err)
	}
	return r, nil
}

// CheckName refuses, as ErrInvalidArgument, what an image can't be called.
func CheckName(ref string) error {
	_, err := parseName(ref)
	return err
}

// fullName is a reference in the form in which the store has it.
func fullName(r name.Reference) string {
	n := r.Name()
	if rest, ok := strings.CutPrefix(n, defaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return n
}

// FamiliarName shortens a full name as people write it: without docker.io/ and
// without library/.
func FamiliarName(full string) string {
	if rest, ok := strings.CutPrefix(full, "docker.io/"); ok {
		short, cut := strings.CutPrefix(rest, "library/")
		if cut {
			return short
		}
		return rest
	}
	return full
}

// minPrefix is the length from which a prefix of a digest is taken for one.
const minPrefix = 4

// find returns the digest of the image that ref means: a name; a digest of a
// manifest or an index; a unique prefix of a digest, with or without "sha256:".
func (x *index) find(ref string) (digest string, err error) {
	if r, err := parseName(ref); err == nil {
		if d, ok := x.Names[fullName(r)]; ok {
			return d, nil
		}
		// Any name with this digest means this content.
		if d, ok := r.(name.Digest); ok {
			if found, err := x.byDigest(d.DigestStr()); err == nil {
				return found, nil
			}
		}
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if len(hex) >= minPrefix && strings.Trim(hex, "0123456789abcdef") == "" {
		return x.byDigest("sha256:" + hex)
	}
	return "", fmt.Errorf("no image %q here: %w", ref, isolation.ErrNotFound)
}

func (x *index) byDigest(prefix string) (string, error) {
	var list []string
	for d, r := range x.Images {
		if strings.HasPrefix(d, prefix) || r.Index != "" && r.Index == prefix {
			list = append(list, d)
		}
	}
	switch len(list) {
	case 0:
		return "", fmt.Errorf("no image %q here: %w", prefix, isolation.ErrNotFound)
	case 1:
		return list[0], nil
	}
	slices.Sort(list)
	return "", fmt.Errorf("%q means %d images (%s): %w", prefix, len(list), strings.Join(list, ", "), isolation.ErrInvalidArgument)
}

// Get returns the image that ref means: a name ("alpine:3", "ghcr.io/o/i@sha256:..."),
// the digest of a manifest or of an index, or a unique prefix of one with at
// least four digits. It does not use the network. The error is of class
// [isolation.ErrNotFound] if there is none.
func (s *Store) Get(ref string) (Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return Image{}, err
	}
	d, err := x.find(ref)
	if err != nil {
		return Image{}, err
	}
	return s.image(x, d)
}

// List returns all images, newest first. An image that is damaged is left out,
// and is in the error; the others are returned beside it.
func (s *Store) List() ([]Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	var errs []error
	list := make([]Image, 0, len(x.Images))
	for d := range x.Images {
		img, err := s.image(x, d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b Image) int {
		if c := b.Added.Compare(a.Added); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return list, errors.Join(errs...)
}

// image makes an Image of a record; its config is a blob.
func (s *Store) image(x *index, digest string) (Image, error) {
	r := x.Images[digest]
	img := Image{
		Digest: digest, Names: []string{}, Index: r.Index, Platform: r.Platform, Added: r.Added,
		Size: r.Size, UnpackedSize: r.Unpacked, Layers: r.Layers, blobs: append([]string{digest}, r.Blobs...),
	}
	for _, n := range slices.Sorted(maps.Keys(x.Names)) {
		if x.Names[n] == digest {
			img.Names = append(img.Names, n)
		}
	}
	b, err := s.readBlob(r.Config)
	if err != nil {
		return Image{}, damaged("the config of image "+digest, err)
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(b))
	if err != nil {
		return Image{}, fmt.Errorf("config of image %s: %w", digest, err)
	}
	img.Created = c.Created.Time
	img.Config = runConfig(c.Config)
	return img, nil
}

// Removed says what [Store.Remove] did.
type Removed struct {
	Digest string   `json:"digest"`
	Names  []string `json:"names"`
	// Image is false if the image is still there under other names.
	Image bool `json:"image"`
}

// Remove removes a name, and the image with its last name; or, by a digest or a
// prefix of one, an image with all of its names. Its content stays until [Store.GC],
// and for as long as a lease has it.
func (s *Store) Remove(ctx context.Context, ref string) (Removed, error) {
	var rm Removed
	err := s.change(ctx, func(x *index) error {
		d, err := x.find(ref)
		if err != nil {
			return err
		}
		rm = Removed{Digest: d, Names: []string{}}
		if r, err := parseName(ref); err == nil && x.Names[fullName(r)] == d {
			rm.Names = append(rm.Names, fullName(r))
		} else {
			for _, n := range slices.Sorted(maps.Keys(x.Names)) {
				if x.Names[n] == d {
					rm.Names = append(rm.Names, n)
				}
			}
		}
		for _, n := range rm.Names {
			delete(x.Names, n)
		}
		if rm.Image = !slices.Contains(slices.Collect(maps.Values(x.Names)), d); rm.Image {
			delete(x.Images, d)
		}
		return nil
	})
	return rm, err
}

// Registry is the registry that a reference names, in the form that people write.
func Registry(ref string) string {
	r, err := parseName(ref)
	if err != nil {
		return ""
	}
	registry, _, _ := strings.Cut(fullName(r), "/")
	return registry
}
