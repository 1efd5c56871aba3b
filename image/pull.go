package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/axocoatl/isolation"
	"github.com/axocoatl/isolation/internal/failpoint"
)

// PullOptions are options of [Store.Pull].
type PullOptions struct {
	// Platform is os/architecture[/variant]; empty means [HostPlatform].
	Platform string
	// Progress is called for events, one at a time; it must be quick.
	Progress func(Event)
	// Keychain has the credentials; nil means those that docker login, or
	// podman login, wrote.
	Keychain Keychain
	// Name is what it is called here; empty: as it is there.
	Name string
	// Insecure allows plain HTTP to any registry. To loopback addresses it is
	// always allowed.
	Insecure bool
}

// Keychain has the credentials for registries.
type Keychain = authn.Keychain

// BasicAuth is a Keychain with a name and a password for the registry of one reference,
// and nothing for others.
func BasicAuth(ref, username, password string) (Keychain, error) {
	r, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	return onlyFor{r.Context().RegistryStr(), authn.FromConfig(authn.AuthConfig{Username: username, Password: password})}, nil
}

// Anonymous is a Keychain without credentials.
func Anonymous() Keychain { return onlyFor{} }

type onlyFor struct {
	registry string
	auth     authn.Authenticator
}

// Resolve implements [authn.Keychain].
func (o onlyFor) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() == o.registry {
		return o.auth, nil
	}
	return authn.Anonymous, nil
}

// Pull fetches an image by its reference, such as "alpine:3" (which is
// docker.io/library/alpine:3) or "ghcr.io/o/i@sha256:...", unpacks its layers and
// names it. What the store has is not fetched again, and what an interrupted
// pull got of a blob is kept and used by the next one. Only when all is there
// and verified does the image appear.
//
// Errors are of class InvalidArgument (the reference; content that is bad or not
// what its digest says, see [ErrDigest]), NotFound (also for the platform),
// Unauthenticated, PermissionDenied, Unavailable (the network, the registry),
// ResourceExhausted (a limit) or FailedPrecondition (plain HTTP).
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	img, err := s.pull(ctx, ref, o)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = cause
		}
		return Image{}, &isolation.Error{Op: "pull", ID: ref, Err: explain(ref, err)}
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return Image{}, err
	}
	var opts []name.Option
	if o.Insecure {
		opts = append(opts, name.Insecure)
	}
	r, err := parseName(ref, opts...)
	if err != nil {
		return Image{}, err
	}
	as := fullName(r)
	if o.Name != "" {
		n, err := parseName(o.Name)
		if err != nil {
			return Image{}, err
		}
		as = fullName(n)
	}
	reg, err := dial(ctx, r, o, s.limits)
	if err != nil {
		return Image{}, err
	}
	defer reg.close()
	ev := newEvents(o.Progress)
	m, err := s.resolve(ctx, reg, r, want)
	if err != nil {
		return Image{}, err
	}
	m.name = as
	return s.fetch(ctx, m, want, ev, func(d v1.Descriptor) source { return reg.blob(d.Digest.String(), d.Size) })
}

// manifest is an image's that is to be had.
type manifest struct {
	raw    []byte
	digest string
	index  string // digest of the index, if there was one
	name   string // may be empty
	v1.Manifest
}

// maxIndexes bounds indexes within indexes.
const maxIndexes = 3

// resolve gets the manifest of a reference for a platform.
func (s *Store) resolve(ctx context.Context, reg *registry, ref name.Reference, want v1.Platform) (*manifest, error) {
	index := ""
	for range maxIndexes {
		d, err := remote.Get(ref, remote.WithContext(ctx), remote.WithTransport(reg.rt))
		if err != nil {
			return nil, err
		}
		if !d.MediaType.IsIndex() {
			m, err := s.parseManifest(d.Manifest, d.MediaType)
			if m != nil {
				m.index = index
			}
			return m, err
		}
		x, err := s.parseIndex(d.Manifest)
		if err != nil {
			return nil, err
		}
		child, err := choose(x, want)
		if err != nil {
			return nil, err
		}
		if _, err := checkDigest(child.Digest.String()); err != nil {
			return nil, err
		}
		if index == "" {
			index = digestBytes(d.Manifest)
		}
		ref = ref.Context().Digest(child.Digest.String())
	}
	return nil, refuse("more than %d indexes within each other", maxIndexes)
}

func (s *Store) parseIndex(raw []byte) (*v1.IndexManifest, error) {
	if int64(len(raw)) > s.limits.ManifestBytes {
		return nil, fmt.Errorf("the index has %d bytes: %w", len(raw), isolation.ErrResourceExhausted)
	}
	x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, refuse("the index cannot be read: %v", err)
	}
	return x, nil
}

// parseManifest checks all of a manifest that is used later.
func (s *Store) parseManifest(raw []byte, media types.MediaType) (*manifest, error) {
	if int64(len(raw)) > s.limits.ManifestBytes {
		return nil, fmt.Errorf("the manifest has %d bytes: %w", len(raw), isolation.ErrResourceExhausted)
	}
	if media == types.DockerManifestSchema1 || media == types.DockerManifestSchema1Signed {
		return nil, &isolation.UnsupportedError{Feature: "a manifest of Docker's schema 1", Need: "the image pushed again by a Docker of this decade"}
	}
	p, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, refuse("the manifest cannot be read: %v", err)
	}
	m := &manifest{raw: raw, digest: digestBytes(raw), Manifest: *p}
	if t := p.Config.MediaType; t != types.DockerConfigJSON && t != types.OCIConfigJSON {
		return nil, refuse("this is no container image: its config is of type %q", t)
	}
	if len(p.Layers) > s.limits.Layers {
		return nil, fmt.Errorf("the image has %d layers, allowed are %d: %w", len(p.Layers), s.limits.Layers, isolation.ErrResourceExhausted)
	}
	if p.Config.Size > s.limits.ManifestBytes {
		return nil, fmt.Errorf("the config has %d bytes, allowed are %d: %w", p.Config.Size, s.limits.ManifestBytes, isolation.ErrResourceExhausted)
	}
	for _, d := range append([]v1.Descriptor{p.Config}, p.Layers...) {
		if _, err := checkDigest(d.Digest.String()); err != nil {
			return nil, err
		}
		if d.Size < 0 || d.Size > s.limits.BlobBytes {
			return nil, fmt.Errorf("blob %s has %d bytes, allowed are %d: %w", d.Digest, d.Size, s.limits.BlobBytes, isolation.ErrResourceExhausted)
		}
	}
	for _, d := range p.Layers {
		switch d.MediaType {
		case types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer,
			types.OCIRestrictedLayer, types.OCIUncompressedRestrictedLayer, types.DockerForeignLayer:
		default:
			return nil, refuse("a layer is of type %q", d.MediaType)
		}
	}
	return m, nil
}

func (m *manifest) blobs() (list []string) {
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		list = append(list, d.Digest.String())
	}
	return list
}

// fetch brings all of an image into the store, and then makes it visible.
func (s *Store) fetch(ctx context.Context, m *manifest, want v1.Platform, ev *events, from func(v1.Descriptor) source) (Image, error) {
	blobs := m.blobs()
	l, err := s.newLease(ctx, content{Blobs: append([]string{m.digest}, blobs...)})
	if err != nil {
		return Image{}, err
	}
	defer l.release()
	size := m.Config.Size
	for _, d := range m.Layers {
		size += d.Size
	}
	ev.send(Event{Stage: StageResolved, Digest: m.digest, Total: size})
	if err := s.ingest(ctx, m.Config.Digest.String(), m.Config.Size, from(m.Config), newEvents(nil)); err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	raw, err := s.readBlob(m.Config.Digest.String())
	if err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return Image{}, refuse("the config cannot be read: %v", err)
	}
	if err := checkPlatform(config, want); err != nil {
		return Image{}, err
	}
	ids := make([]DiffID, len(config.RootFS.DiffIDs))
	for i, h := range config.RootFS.DiffIDs {
		if _, err := checkDigest(h.String()); err != nil {
			return Image{}, fmt.Errorf("config: %w", err)
		}
		ids[i] = DiffID(h.String())
	}
	if len(ids) != len(m.Layers) {
		return Image{}, refuse("the manifest has %d layers, the config %d", len(m.Layers), len(ids))
	}
	if err := l.add(ctx, content{Layers: ids}); err != nil {
		return Image{}, err
	}
	unpacked, err := s.fetchLayers(ctx, m, ids, ev, from)
	if err != nil {
		return Image{}, err
	}
	if _, err := s.putBytes(m.raw); err != nil {
		return Image{}, err
	}
	rec := record{
		Index: m.index, Config: m.Config.Digest.String(), Blobs: blobs, Layers: ids, Platform: platformOf(config),
		Size: size + int64(len(m.raw)), Unpacked: unpacked, Added: time.Now().UTC().Truncate(time.Second),
	}
	err = s.change(ctx, func(x *index) error {
		if old, ok := x.Images[m.digest]; ok && rec.Index == "" {
			rec.Index = old.Index
		}
		x.Images[m.digest] = rec
		if m.name != "" {
			x.Names[m.name] = m.digest
		}
		return nil
	})
	if err != nil {
		return Image{}, err
	}
	failpoint.Hit(failpoint.ImageNamed)
	return s.Get(m.digest)
}

func platformOf(c *v1.ConfigFile) string {
	return v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}.String()
}

// fetchLayers downloads several at a time, and unpacks each when it is there.
func (s *Store) fetchLayers(ctx context.Context, m *manifest, ids []DiffID, ev *events, from func(v1.Descriptor) source) (int64, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.downloads)
	sizes := make([]int64, len(ids))
	for i, d := range m.Layers {
		// The same layer twice is one.
		if at := slices.Index(ids, ids[i]); at < i && m.Layers[at].Digest == d.Digest {
			continue
		}
		g.Go(func() error {
			if err := s.ingest(gctx, d.Digest.String(), d.Size, from(d), ev); err != nil {
				return err
			}
			info, err := s.layer(gctx, d.Digest.String(), ids[i], s.limits.ImageBytes, ev)
			sizes[i] = info.Bytes
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	var total int64
	for _, n := range sizes {
		if total += n; total > s.limits.ImageBytes {
			return 0, tooBig("the image", s.limits.ImageBytes)
		}
	}
	return total, nil
}
