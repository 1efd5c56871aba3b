package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/axocoatl/isolation"
)

// ImportOptions are options of [Store.Import].
type ImportOptions struct {
	// Name names the image. If it is empty, the names that an archive has are
	// taken; a root filesystem has none.
	Name string
	// Select says which image is meant if there are several: a name in the
	// archive, or a digest.
	Select string
	// Platform is os/architecture[/variant]; empty means [HostPlatform]. A root
	// filesystem is taken to be for it.
	Platform string
	// Config is for a root filesystem only, which has none of its own.
	Config *RunConfig
	// Progress is called for events, one at a time; it must be quick.
	Progress func(Event)
}

// Import takes an image from a file or a directory, by what it finds: the tar of
// docker save (or podman save), an OCI image layout as a directory or a tar, or a
// tar of a root filesystem, which becomes an image of one layer. Tars may be
// compressed with gzip or zstd.
//
// Errors are of class InvalidArgument (content that is bad), NotFound (no such
// image or platform in it), ResourceExhausted (a limit), or are the system's.
func (s *Store) Import(ctx context.Context, path string, o ImportOptions) (Image, error) {
	img, err := s.importPath(ctx, path, o)
	if err != nil {
		return Image{}, &isolation.Error{Op: "import", ID: path, Err: err}
	}
	return img, nil
}

// importer is one import.
type importer struct {
	s     *Store
	o     ImportOptions
	want  v1.Platform
	name  string // in full; may be empty
	ev    *events
	lease *lease
}

func (s *Store) importPath(ctx context.Context, path string, o ImportOptions) (img Image, err error) {
	i := &importer{s: s, o: o, ev: newEvents(o.Progress)}
	if i.want, err = parsePlatform(o.Platform); err != nil {
		return img, err
	}
	if o.Name != "" {
		r, err := parseName(o.Name)
		if err != nil {
			return img, err
		}
		i.name = fullName(r)
	}
	if i.lease, err = s.newLease(ctx, content{}); err != nil {
		return img, err
	}
	defer i.lease.release()
	st, err := os.Stat(path)
	if err != nil {
		return img, err
	}
	if st.IsDir() {
		a, err := openDir(path)
		if err != nil {
			return img, err
		}
		defer a.close()
		return i.archive(ctx, a)
	}
	f, err := openRegular(path)
	if err != nil {
		return img, err
	}
	defer f.Close()
	return i.file(ctx, f)
}

// file imports a tar of any kind.
func (i *importer) file(ctx context.Context, f *os.File) (Image, error) {
	c, err := sniff(bufio.NewReader(f))
	if err != nil {
		return Image{}, err
	}
	rewind := func() error { _, err := f.Seek(0, io.SeekStart); return err }
	if err := rewind(); err != nil {
		return Image{}, err
	}
	rootfs := false
	if c == plain {
		rootfs, err = isRootFS(f, i.s.limits)
	} else {
		var z io.ReadCloser
		if z, _, err = decompress(&ctxReader{ctx, f}); err == nil {
			rootfs, err = isRootFS(&boundReader{r: z, left: i.s.limits.tarBytes()}, i.s.limits)
			z.Close()
		}
	}
	if err != nil {
		return Image{}, err
	}
	if err := rewind(); err != nil {
		return Image{}, err
	}
	if rootfs {
		return i.rootFS(ctx, f)
	}
	if c != plain {
		// Its parts are wanted out of order.
		if f, err = i.inflate(ctx, f); err != nil {
			return Image{}, err
		}
		defer f.Close()
	}
	a, err := openTar(f, i.s.limits)
	if err != nil {
		return Image{}, err
	}
	return i.archive(ctx, a)
}

// inflate makes an uncompressed copy, which has no name.
func (i *importer) inflate(ctx context.Context, r io.Reader) (*os.File, error) {
	z, _, err := decompress(&ctxReader{ctx, r})
	if err != nil {
		return nil, err
	}
	defer z.Close()
	f, err := i.s.createTemp("archive-")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	_, err = io.Copy(f, &boundReader{r: z, left: i.s.limits.ImageBytes})
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// archive imports a docker-archive or an OCI layout. What has both, as docker
// save writes since version 25, is read as the layout, whose digests count.
func (i *importer) archive(ctx context.Context, a archive) (Image, error) {
	if i.o.Config != nil {
		return Image{}, refuse("a config is only given for a root filesystem; this image has its own")
	}
	raw, err := readAll(a, "index.json", i.s.limits.ManifestBytes)
	if err == nil {
		return i.layout(ctx, a, raw)
	} else if !errors.Is(err, os.ErrNotExist) {
		return Image{}, err
	}
	raw, err = readAll(a, "manifest.json", i.s.limits.ManifestBytes)
	if err == nil {
		return i.docker(ctx, a, raw)
	} else if !errors.Is(err, os.ErrNotExist) {
		return Image{}, err
	}
	return Image{}, refuse("it has neither index.json (an OCI layout) nor manifest.json (docker save); a root filesystem is imported as a tar")
}

// The annotations that name an image in a layout.
const (
	annotationRef        = "org.opencontainers.image.ref.name"
	annotationContainerd = "io.containerd.image.name"
)

func (i *importer) layout(ctx context.Context, a archive, raw []byte) (Image, error) {
	x, err := i.s.parseIndex(raw)
	if err != nil {
		return Image{}, err
	}
	d, err := i.pick(x)
	if err != nil {
		return Image{}, err
	}
	if i.name == "" {
		i.name = nameOf(d.Annotations)
	}
	index := ""
	for range maxIndexes {
		if _, err := checkDigest(d.Digest.String()); err != nil {
			return Image{}, err
		}
		raw, err := readAll(a, blobName(d.Digest), i.s.limits.ManifestBytes)
		if err != nil {
			return Image{}, err
		}
		if digestBytes(raw) != d.Digest.String() {
			return Image{}, fmt.Errorf("%s: %w", blobName(d.Digest), ErrDigest)
		}
		if !d.MediaType.IsIndex() {
			m, err := i.s.parseManifest(raw, d.MediaType)
			if err != nil {
				return Image{}, err
			}
			m.index, m.name = index, i.name
			return i.s.fetch(ctx, m, i.want, i.ev, func(d v1.Descriptor) source { return archiveSource(a, blobName(d.Digest), d.Size) })
		}
		if index == "" {
			index = d.Digest.String()
		}
		x, err := i.s.parseIndex(raw)
		if err != nil {
			return Image{}, err
		}
		if d, err = choose(x, i.want); err != nil {
			return Image{}, err
		}
	}
	return Image{}, refuse("more than %d indexes within each other", maxIndexes)
}

func blobName(h v1.Hash) string { return "blobs/sha256/" + h.Hex }

// nameOf returns the full name that annotations give, if they give one: many
// have a tag alone.
func nameOf(annotations map[string]string) string {
	for _, n := range []string{annotations[annotationContainerd], annotations[annotationRef]} {
		if strings.ContainsAny(n, "/:") {
			if r, err := parseName(n); err == nil {
				return fullName(r)
			}
		}
	}
	return ""
}

// pick picks an image of a layout.
func (i *importer) pick(x *v1.IndexManifest) (v1.Descriptor, error) {
	var labels []string
	named := map[string]bool{}
	for _, d := range x.Manifests {
		label := d.Digest.String()
		if n := d.Annotations[annotationRef]; n != "" {
			named[n] = true
			label = n
		}
		labels = append(labels, label)
		if i.o.Select != "" && (slices.Contains([]string{d.Digest.String(), d.Annotations[annotationRef], d.Annotations[annotationContainerd]}, i.o.Select)) {
			return d, nil
		}
	}
	switch {
	case i.o.Select != "":
		return v1.Descriptor{}, fmt.Errorf("there is no image %q; there are %.1000s: %w", i.o.Select, strings.Join(labels, ", "), isolation.ErrNotFound)
	case len(x.Manifests) == 1:
		return x.Manifests[0], nil
	case len(named) > 1:
		return v1.Descriptor{}, refuse("there are several images, select one: %.1000s", strings.Join(labels, ", "))
	}
	return choose(x, i.want)
}

// docker imports what docker save wrote before version 25.
func (i *importer) docker(ctx context.Context, a archive, raw []byte) (Image, error) {
	var all tarball.Manifest
	if err := json.Unmarshal(raw, &all); err != nil {
		return Image{}, refuse("manifest.json cannot be read: %v", err)
	}
	var d *tarball.Descriptor
	var labels []string
	for n := range all {
		labels = append(labels, strings.Join(append(all[n].RepoTags, all[n].Config), " "))
		if i.o.Select == "" && len(all) == 1 || i.o.Select != "" && (slices.Contains(all[n].RepoTags, i.o.Select) || all[n].Config == i.o.Select) {
			d = &all[n]
		}
	}
	if d == nil {
		return Image{}, fmt.Errorf("select one of the %d images: %.1000s: %w", len(all), strings.Join(labels, ", "), isolation.ErrNotFound)
	}
	if i.name == "" && len(d.RepoTags) > 0 {
		if r, err := parseName(d.RepoTags[0]); err == nil {
			i.name = fullName(r)
		}
	}
	if len(d.Layers) > i.s.limits.Layers {
		return Image{}, fmt.Errorf("the image has %d layers, allowed are %d: %w", len(d.Layers), i.s.limits.Layers, isolation.ErrResourceExhausted)
	}
	config, err := readAll(a, d.Config, i.s.limits.ManifestBytes)
	if err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	layers := make([]v1.Descriptor, 0, len(d.Layers))
	for _, name := range d.Layers {
		l, err := i.layer(ctx, a, name)
		if err != nil {
			return Image{}, fmt.Errorf("layer %q: %w", name, err)
		}
		layers = append(layers, l)
	}
	return i.assemble(ctx, config, layers)
}

func (i *importer) layer(ctx context.Context, a archive, name string) (v1.Descriptor, error) {
	r, size, err := a.open(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer r.Close()
	br := bufio.NewReaderSize(r, 64<<10)
	c, err := sniff(br)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := i.s.putStream(ctx, i.lease, &countReader{r: br, ev: i.ev, e: Event{Stage: StageCopy, Digest: name, Total: size}})
	d.MediaType = c.mediaType()
	if err == nil {
		i.ev.send(Event{Stage: StageCopied, Digest: name, Done: size, Total: size})
	}
	return d, err
}

// assemble makes a manifest for a config and layers that have none.
func (i *importer) assemble(ctx context.Context, config []byte, layers []v1.Descriptor) (Image, error) {
	if int64(len(config)) > i.s.limits.ManifestBytes {
		return Image{}, fmt.Errorf("the config has %d bytes: %w", len(config), isolation.ErrResourceExhausted)
	}
	d, err := i.s.putStream(ctx, i.lease, bytes.NewReader(config))
	if err != nil {
		return Image{}, err
	}
	d.MediaType = types.OCIConfigJSON
	raw, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: d, Layers: layers})
	if err != nil {
		return Image{}, err
	}
	m, err := i.s.parseManifest(raw, types.OCIManifestSchema1)
	if err != nil {
		return Image{}, err
	}
	m.name = i.name
	return i.s.fetch(ctx, m, i.want, i.ev, func(d v1.Descriptor) source {
		return func(context.Context, int64) (io.ReadCloser, int64, error) {
			return nil, 0, fmt.Errorf("blob %s has gone from the store: %w", d.Digest, ErrDigest)
		}
	})
}

// rootFS makes an image of one layer.
func (i *importer) rootFS(ctx context.Context, f *os.File) (Image, error) {
	if i.o.Select != "" {
		return Image{}, refuse("this is a root filesystem, there is no %q to select", i.o.Select)
	}
	a := oneFile{f}
	d, err := i.layer(ctx, a, filepath.Base(f.Name()))
	if err != nil {
		return Image{}, err
	}
	lease := func(id DiffID) error { return i.lease.add(ctx, content{Layers: []DiffID{id}}) }
	info, err := i.s.unpackBlob(ctx, d.Digest.String(), lease, i.s.limits.ImageBytes, i.ev)
	if err != nil {
		return Image{}, err
	}
	id, err := v1.NewHash(string(info.DiffID))
	if err != nil {
		return Image{}, err
	}
	c := v1.ConfigFile{
		OS: i.want.OS, Architecture: i.want.Architecture, Variant: i.want.Variant,
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{id}},
	}
	if o := i.o.Config; o != nil {
		c.Config = configOf(*o)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return Image{}, err
	}
	return i.assemble(ctx, raw, []v1.Descriptor{d})
}
